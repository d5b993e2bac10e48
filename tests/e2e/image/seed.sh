#!/bin/bash
# Makes of the Debian image one that lets cloud-init fetch its seed: seed.sh DEBIAN.raw OUT.raw
#
# As a site would build it: cloud-init's stage that has a network is not masked. What is per machine is written by
# the workflow. Needs no root.
set -euo pipefail
base=${1:?usage: seed.sh DEBIAN.raw OUT.raw}
out=${2:?usage: seed.sh DEBIAN.raw OUT.raw}
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
{
	path=/
	for name in upper etc systemd system; do
		printf 'cd %s\nmkdir %s\n' "$path" "$name"
		path=${path%/}/$name
	done
	printf 'cd %s\nwrite %s %s\n' "$path" "$work/$unit" "$unit"
} >"$work/commands"
debugfs -w -f "$work/commands" "$work/out.raw?offset=$(begin STATE)" >"$work/log" 2>&1
[ "$(debugfs -R "cat $path/$unit" "$work/out.raw?offset=$(begin STATE)" 2>>"$work/log" | sha256sum)" = "$(sha256sum <"$work/$unit")" ] ||
	{ cat "$work/log" >&2; exit 1; }
mv "$work/out.raw" "$out"
