#!/bin/bash
# Makes of the Debian image one that runs Ignition at its first boot: ignition.sh DEBIAN.raw OUT.raw
#
# Only the boot partition differs: a second initramfs with Debian's ignition, the card's driver and
# ignition/first-boot, unpacked over the first. Needs no root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
base=${1:?usage: ignition.sh DEBIAN.raw OUT.raw}
out=${2:?usage: ignition.sh DEBIAN.raw OUT.raw}
ignition=/usr/lib/dracut/modules.d/30ignition/ignition
esp=$((4 * 1024 * 1024))
PATH=$PATH:/usr/sbin:/sbin
missing=()
for tool in mcopy:mtools unsquashfs:squashfs-tools cpio:cpio zstd:zstd sfdisk:fdisk "$ignition:ignition"; do
	command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
[ ${#missing[@]} = 0 ] || { echo "ignition.sh: packages needed: apt-get install ${missing[*]}" >&2; exit 1; }
work=$(mktemp -d "$(dirname "$out")/.ignition.XXXXXX")
trap 'rm -rf "$work"' EXIT

tree=$work/tree
mkdir -p "$tree"/first-boot/{bin,modules} "$tree"/scripts/init-bottom "$tree"/usr/bin
install -m 0755 "$ignition" "$tree/first-boot/bin/"
for name in useradd usermod userdel groupadd groupmod groupdel; do
	install -m 0755 "$here/ignition/in-root" "$tree/first-boot/bin/$name"
done
ln -s /usr/bin/true "$tree/first-boot/bin/setfiles"

root=$(sfdisk -d "$base" | sed -n 's/.*start= *\([0-9]*\),.*name="ROOT"/\1/p')
unsquashfs -q -n -o $((root * 512)) -d "$work/root" "$base" \
	'usr/lib/modules/*/kernel/net/core/failover.ko' 'usr/lib/modules/*/kernel/drivers/net/net_failover.ko' \
	'usr/lib/modules/*/kernel/drivers/net/virtio_net.ko' >/dev/null
number=0
for name in failover net_failover virtio_net; do
	module=$(find "$work/root" -name "$name.ko")
	[ -n "$module" ] || { echo "ignition.sh: no $name.ko in the image" >&2; exit 1; }
	cp "$module" "$tree/first-boot/modules/$number-$name.ko"
	number=$((number + 1))
done

install -m 0755 "$here/ignition/first-boot" "$tree/scripts/init-bottom/first-boot"
# Before udev's, which takes /dev away.
cat >"$tree/scripts/init-bottom/ORDER" <<-'END'
	/scripts/init-bottom/first-boot "$@"
	[ -e /conf/param.conf ] && . /conf/param.conf
	/scripts/init-bottom/udev "$@"
	[ -e /conf/param.conf ] && . /conf/param.conf
END
(cd "$tree" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc --owner=0:0 --reproducible) |
	zstd -q -9 >"$work/ignition.img"

cp --sparse=always "$base" "$work/out.raw"
# On a busy host the timer of an emulated machine is late: Linux would panic.
mtype -i "$work/out.raw@@$esp" ::grub/grub.cfg |
	sed -e 's|initrd /initrd.img$|& /ignition.img|' -e 's|^\(\s*linux .*\) ro$|\1 ro no_timer_check|' >"$work/grub.cfg"
grep -q ignition.img "$work/grub.cfg"
grep -q no_timer_check "$work/grub.cfg"
mcopy -o -i "$work/out.raw@@$esp" "$work/grub.cfg" ::grub/grub.cfg
mcopy -i "$work/out.raw@@$esp" "$work/ignition.img" ::
mv "$work/out.raw" "$out"
