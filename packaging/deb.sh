#!/bin/bash
# Makes a Debian package of the daemon, its boot files and its unit, and checks what came out.
#
#   deb.sh --binary target/release/anneal --netboot .cache/netboot --out target/debian
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'deb: %s\n' "$*" >&2; exit 1; }
binary=target/release/anneal netboot=.cache/netboot out=target/debian
while [ $# -gt 0 ]; do
  case $1 in
    --binary) binary=$2 ;;
    --netboot) netboot=$2 ;;
    --out) out=$2 ;;
    *) die 'usage: deb.sh [--binary FILE] [--netboot DIR] [--out DIR]' ;;
  esac
  shift 2
done
[ -x "$binary" ] || die "$binary is missing: run \`cargo build --release -p anneal\`"
[ -e "$netboot/vmlinuz" ] || die "$netboot has no boot files: run \`make netboot\`"
command -v dpkg-shlibdeps >/dev/null || die 'dpkg-shlibdeps is missing: apt install dpkg-dev'

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
architecture=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

install -D -m 755 -s "$binary" "$root/usr/bin/anneal"
install -D -m 644 packaging/anneal.service "$root/lib/systemd/system/anneal.service"
install -D -m 644 packaging/anneal.sysusers "$root/usr/lib/sysusers.d/anneal.conf"
install -D -m 644 packaging/anneal.tmpfiles "$root/usr/lib/tmpfiles.d/anneal.conf"
install -D -m 644 packaging/anneal.yaml "$root/etc/anneal/anneal.yaml"
for name in undionly.kpxe snponly.efi ipxe.efi ipxe-arm64.efi vmlinuz initramfs.img; do
  [ -e "$netboot/$name" ] || die "$netboot/$name is missing: run \`make netboot\`"
  install -D -m 644 "$netboot/$name" "$root/usr/share/anneal/netboot/$name"
done
mkdir -p "$root/usr/share/doc/anneal"
for page in docs/*.md; do install -m 644 "$page" "$root/usr/share/doc/anneal/"; done
install -m 644 packaging/copyright "$root/usr/share/doc/anneal/copyright"

# What the binary links to, as Debian names it.
mkdir "$work/debian"
printf 'Source: anneal\n\nPackage: anneal\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O root/usr/bin/anneal 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || die "cannot tell what $binary depends on"

install -d "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: anneal
Version: $version
Architecture: $architecture
Maintainer: anneal developers <noreply@invalid>
Installed-Size: $(du -sk "$root" | cut -f1)
Depends: $depends, systemd
Section: admin
Priority: optional
Description: bare-metal provisioning for immutable operating systems
 One daemon answers DHCP, TFTP and HTTP boot, keeps the hardware inventory, and
 streams sealed images to the disks of machines that it powers over Redfish.
CONTROL
echo /etc/anneal/anneal.yaml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
  install -m 755 "packaging/deb/$script" "$root/DEBIAN/$script"
done

mkdir -p "$out"
package=$out/anneal_${version}_${architecture}.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null

# What must be in it, with the rights it must have.
listing=$(dpkg-deb -c "$package")
while read -r mode path; do
  grep -Eq "^$mode root/root .* \\.$path\$" <<<"$listing" || die "$package: $path is missing or is not $mode"
done <<'WANT'
-rwxr-xr-x /usr/bin/anneal
-rw-r--r-- /lib/systemd/system/anneal.service
-rw-r--r-- /usr/lib/sysusers.d/anneal.conf
-rw-r--r-- /usr/lib/tmpfiles.d/anneal.conf
-rw-r--r-- /etc/anneal/anneal.yaml
-rw-r--r-- /usr/share/anneal/netboot/initramfs.img
WANT
echo "$package"
