#!/bin/bash
# Installs the programs that `make bench` measures beside anneal, and only what is missing. Says first
# what it installs and why. Not part of scripts/setup.sh: nothing else needs them.
set -euo pipefail

PACKAGES='
nginx-light|serves the image to the peers; what the image port is compared with
bmap-tools|bmaptool copy
casync|casync extract, also over a drifted disk
qemu-utils|qemu-img convert
zstd|curl, zstd and dd in a pipe
gdisk|the partition table of the image that is measured with
fdisk|sfdisk: reads it
procps|sysctl: a congestion control that does not pace
'
missing=()
while IFS='|' read -r package why; do
  [ -n "$package" ] || continue
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
    missing+=("$package|$why")
done <<<"$PACKAGES"
[ ${#missing[@]} -gt 0 ] || { echo 'bench-setup: everything is there'; exit 0; }

echo 'bench-setup: installing with apt:'
for line in "${missing[@]}"; do printf '  %-24s %s\n' "${line%%|*}" "${line#*|}"; done
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
# nginx must not start as a service because we need the program.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin $policy
  # shellcheck disable=SC2064
  trap "${as_root[*]} rm -f $policy" EXIT
fi
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -q -y --no-install-recommends "${missing[@]%%|*}"
