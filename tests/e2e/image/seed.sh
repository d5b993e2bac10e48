#!/bin/bash
# Makes of the Debian image one that lets cloud-init fetch its seed: seed.sh DEBIAN.raw OUT.raw [MODULES]
#
# As a site would build it: cloud-init's stage that has a network is not masked. MODULES, separated by commas, are what
# that stage does, if not what the image says. What is per machine is written by the workflow. Needs no root.
set -euo pipefail
usage="usage: seed.sh DEBIAN.raw OUT.raw [MODULES]"
base=${1:?$usage}
out=${2:?$usage}
modules=${3:-}
export PATH=$PATH:/usr/sbin:/sbin
for tool in unsquashfs:squashfs-tools debugfs:e2fsprogs sfdisk:fdisk; do
	command -v "${tool%%:*}" >/dev/null || { echo "seed.sh: package needed: ${tool#*:}" >&2; exit 1; }
done
work=$(mktemp -d "$(dirname "$out")/.seed.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Where a partition begins, in bytes.
begin() {
	echo $(($(sfdisk -d "$base" | sed -n "s/.*start= *\([0-9]*\),.*name=\"$1\"/\1/p") * 512))
}

cp --sparse=always "$base" "$work/out.raw"
# The mask is a link in the read-only root; a file in the layer over it is seen instead.
unit=cloud-init.service
unsquashfs -o "$(begin ROOT)" -cat "$base" "usr/lib/systemd/system/$unit" >"$work/$unit"
grep -q '^ExecStart=' "$work/$unit"
chmod 0644 "$work/$unit"
: >"$work/commands"
# place DIRECTORY NAME: the file of that name, in a directory of the layer.
place() {
	local path=/ name
	for name in upper ${1//\// }; do
		printf 'cd %s\nmkdir %s\n' "$path" "$name"
		path=${path%/}/$name
	done >>"$work/commands"
	printf 'cd %s\nwrite %s %s\n' "$path" "$work/$2" "$2" >>"$work/commands"
}
state=$work/out.raw?offset=$(begin STATE)
files=("etc/systemd/system/$unit")
place etc/systemd/system "$unit"
if [ -n "$modules" ]; then
	echo "cloud_init_modules: [$modules]" >"$work/95_modules.cfg"
	chmod 0644 "$work/95_modules.cfg"
	files+=(etc/cloud/cloud.cfg.d/95_modules.cfg)
	place etc/cloud/cloud.cfg.d 95_modules.cfg
fi
debugfs -w -f "$work/commands" "$state" >"$work/log" 2>&1
for file in "${files[@]}"; do
	[ "$(debugfs -R "cat /upper/$file" "$state" 2>>"$work/log" | sha256sum)" = "$(sha256sum <"$work/${file##*/}")" ] ||
		{ cat "$work/log" >&2; exit 1; }
done
mv "$work/out.raw" "$out"
