#!/bin/bash
# Unpacks systemd-boot of the Debian image's release, for A/B images: systemd-boot.sh OUT-DIR
#
# Nothing is installed: that would change this machine's own boot loader.
set -euo pipefail
out=${1:?usage: systemd-boot.sh OUT-DIR}
suite=${ANNEAL_IMAGE_SUITE:-$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo bookworm)}
[ "$(cat "$out/suite" 2>/dev/null)" != "$suite" ] || exit 0
command -v mmdebstrap >/dev/null || { echo "systemd-boot.sh: package needed: mmdebstrap" >&2; exit 1; }
work=$(mktemp -d "$(dirname "$out")/.systemd-boot.XXXXXX")
trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=extract --include=systemd-boot,systemd-boot-efi "$suite" "$work/tree"
mkdir "$work/out"
find "$work/tree" \( -name systemd-bootx64.efi -o -name 'systemd-bless-boot*' ! -name '*.gz' \) -type f \
	-exec cp {} "$work/out" \;
for name in systemd-bootx64.efi systemd-bless-boot systemd-bless-boot-generator systemd-bless-boot.service; do
	[ -s "$work/out/$name" ] || { echo "systemd-boot.sh: $suite's packages have no $name" >&2; exit 1; }
done
echo "$suite" >"$work/out/suite"
rm -rf "$out"
mv "$work/out" "$out"
