#!/bin/bash
# Installs what building, testing and the virtual rack need on Debian 12+ or Ubuntu, and only
# what is missing. Says first what it installs and why. Safe to run again.
#
#   scripts/setup.sh            everything
#   scripts/setup.sh --check    only say what is missing; exit 1 if anything is
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO_DENY=0.20.2
SUSHY_TOOLS=2.2.0

# package|why
PACKAGES=$(
  cat <<'EOF'
build-essential|C compiler and linker for SQLite, zstd and the TLS library
pkg-config|build scripts of dependencies
ca-certificates|TLS to package registries
curl|downloads; a client in the tests
git|version shown by the binaries
iproute2|network namespace, bridge and taps of the virtual rack
qemu-system-x86|the machines of the virtual rack
qemu-utils|disk images
ovmf|UEFI firmware of the machines
ipxe-qemu|network boot ROM of the BIOS machine
libvirt-daemon-system|libvirtd: defines and powers the machines
libvirt-clients|virsh, to look at them
python3-venv|environment for the Redfish service (sushy-tools)
python3-libvirt|how the Redfish service speaks to libvirt
mmdebstrap|makes the Debian image, unpacks packages of its release
squashfs-tools|read-only root of the Debian image
cryptsetup-bin|veritysetup: hash tree of the read-only root
dosfstools|EFI system partition and configuration partition
mtools|puts files into them without mounting
e2fsprogs|state partition
xfsprogs|XFS partitions in the tests of the agent
btrfs-progs|Btrfs partitions in the tests of the agent
attr|security labels of files in the tests of the agent
gdisk|sgdisk: partition table of the image
python3|part of the image builder
zstd|compressed images and initramfs
bzip2|compressed images in the tests
lz4|compressed images in the tests
docker-registry|a real container registry in the tests
cpio|the agent initramfs
kmod|module dependencies of the agent initramfs
xz-utils|compressed kernel modules
grub-efi-amd64-bin|UEFI boot loader of the Debian image
grub-pc-bin|BIOS boot loader of the Debian image
grub-common|builds both boot loaders
jq|reads JSON in examples and scripts
openssl|an independent TLS client in the tests; cosign's keys and signatures
dnsmasq-base|a foreign DHCP server in the tests
isc-dhcp-client|dhclient, a real DHCP client in the tests
udhcpc|another real DHCP client in the tests
ignition|a real first-boot loader that fetches its configuration by URL
python3-grpcio|a real gRPC client in the tests of the event sink
python3-protobuf|its messages
protobuf-compiler|makes them from the definitions
cloud-init|its validators, its phone_home module and its Ec2 data source in the tests
python3-jsonschema|judges Talos' documents by its JSON Schemas
tftp-hpa|a real TFTP client in the tests
atftp|a real TFTP client with windowsize in the tests
nginx-light|an independent HTTP server: what the image port is compared with
gpg|OpenPGP keys and signatures in the tests of proofs
gpg-agent|keeps gpg's keys
gpgv|GnuPG's own verifier, beside ours in the tests
minisign|minisign keys and signatures in the tests of proofs
EOF
)

say() { printf '%s\n' "setup: $*"; }
die() { printf '%s\n' "setup: $*" >&2; exit 1; }
have_package() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# The one thing we cannot fetch with apt.
command -v cargo >/dev/null ||
  die 'cargo is missing: install Rust from https://rustup.rs, then run this again'
command -v apt-get >/dev/null ||
  die 'apt-get is missing: this script knows Debian 12 or newer and Ubuntu; elsewhere install the tools named in scripts/setup.sh'

missing=()
while IFS='|' read -r package why; do
  [ -n "$package" ] || continue
  have_package "$package" || missing+=("$package|$why")
done <<<"$PACKAGES"

if [ "${1:-}" = --check ]; then
  for line in ${missing[@]+"${missing[@]}"}; do say "missing: ${line%%|*} (${line#*|})"; done
  [ ${#missing[@]} -eq 0 ]
  exit
fi

if [ ${#missing[@]} -gt 0 ]; then
  say 'installing with apt:'
  for line in "${missing[@]}"; do printf '  %-24s %s\n' "${line%%|*}" "${line#*|}"; done
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die 'needs root: run it as root, or install sudo'
    as_root=(sudo)
  fi
  # Services must not start because we need their programs: a policy that forbids it, for the
  # time of the installation only, and only where nobody has set one.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin $policy
    # shellcheck disable=SC2064
    trap "${as_root[*]} rm -f $policy" EXIT
  fi
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    "${missing[@]%%|*}"
  if [ -e $policy ] && [ "$(cat $policy)" = "$(printf '#!/bin/sh\nexit 101')" ]; then
    "${as_root[@]}" rm -f $policy
  fi
  trap - EXIT
else
  say 'all Debian packages are there'
fi


# Debian's Python, because python3-libvirt belongs to it, whatever python3 comes first in PATH.
if ! .cache/venv/bin/python -c "
import importlib.metadata as m, sys, libvirt
sys.exit(m.version('sushy-tools') != '$SUSHY_TOOLS')" 2>/dev/null; then
  say "sushy-tools $SUSHY_TOOLS into .cache/venv: the Redfish service of the virtual rack"
  rm -rf .cache/venv
  /usr/bin/python3 -m venv --system-site-packages .cache/venv
  .cache/venv/bin/pip install -q --disable-pip-version-check "sushy-tools==$SUSHY_TOOLS"
fi

say 'done'
