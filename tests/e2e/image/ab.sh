#!/bin/bash
# Makes of the Debian image one with an update: ab.sh DEBIAN.raw SYSTEMD-BOOT-DIR OUT.raw bad|good
#
# systemd-boot in place of GRUB (UEFI only), and two boot entries that count their attempts:
#   ab-2+2.conf  the update, version 2, tried first; of a bad one half of its initramfs is missing, so it panics and restarts
#   ab-1+3.conf  version 1, which starts
# Both entries share kernel and root; each has its own part of the initramfs, which says its version. systemd's own
# service takes the counter off the entry that started. Below /state is what docs/os/rauc.md wants. Needs root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage="usage: ab.sh DEBIAN.raw SYSTEMD-BOOT-DIR OUT.raw bad|good"
base=${1:?$usage}
boot=${2:?$usage}
out=${3:?$usage}
case ${4:?$usage} in
bad) update= ;;
good) update="initrd /initrd.img" ;;
*) echo "$usage" >&2; exit 2 ;;
esac
mib=$((1024 * 1024))
esp=@@$((4 * mib))
for tool in mcopy:mtools cpio:cpio sfdisk:fdisk mkfs.ext4:e2fsprogs; do
	PATH=$PATH:/usr/sbin:/sbin command -v "${tool%%:*}" >/dev/null ||
		{ echo "ab.sh: package needed: ${tool#*:}" >&2; exit 1; }
done
work=$(mktemp -d "$(dirname "$out")/.ab.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp --sparse=always "$base" "$work/out.raw"

# slot VERSION TRIES INITRAMFS ARGUMENTS: the boot entry of a slot, and its part of the initramfs.
slot() {
	local tree=$work/slot-$1
	mkdir -p "$tree/scripts/init-bottom"
	install -m 0755 "$here/ab/slot" "$tree/scripts/init-bottom/slot"
	# Before udev's, which takes /dev away.
	cat >"$tree/scripts/init-bottom/ORDER" <<-'END'
		/scripts/init-bottom/slot "$@"
		[ -e /conf/param.conf ] && . /conf/param.conf
		/scripts/init-bottom/udev "$@"
		[ -e /conf/param.conf ] && . /conf/param.conf
	END
	printf 'IMAGE_ID=anneal-ab\nIMAGE_VERSION=%s\n' "$1" >"$tree/slot"
	(cd "$tree" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc --owner=0:0 --reproducible) |
		zstd -q -9 >"$work/slot-$1.img"
	cat >"$work/ab-$1+$2.conf" <<-END
		title A/B $1
		sort-key ab
		version $1
		linux /vmlinuz
		$3
		initrd /slot-$1.img
		options $4
	END
	mcopy -i "$work/out.raw$esp" "$work/slot-$1.img" ::
	mcopy -i "$work/out.raw$esp" "$work/ab-$1+$2.conf" ::loader/entries/
}

boot_partition() {
	local arguments
	arguments=$(mtype -i "$work/out.raw$esp" ::grub/grub.cfg | sed -n 's/^linux [^ ]* //p')
	[ -n "$arguments" ]
	# A busy host is late with an emulated timer, which is no broken one.
	arguments+=" no_timer_check panic=1"
	mdeltree -i "$work/out.raw$esp" ::grub
	mcopy -o -i "$work/out.raw$esp" "$boot/systemd-bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
	mmd -i "$work/out.raw$esp" ::loader ::loader/entries
	echo "timeout 0" >"$work/loader.conf"
	mcopy -i "$work/out.raw$esp" "$work/loader.conf" ::loader/
	slot 1 3 "initrd /initrd.img" "$arguments"
	slot 2 2 "$update" "$arguments"
}

# The writable layer over the root, with what the Debian image lacks.
state_partition() {
	local top=$work/state/upper start size
	local units=$top/etc/systemd/system system=$top/usr/lib/systemd
	mkdir -p "$work/state/work" "$top"/{state,efi} "$units"/{sysinit,local-fs}.target.wants \
		"$system"/{system,system-generators}
	cp "$here"/ab/units/* "$units"
	ln -s ../anneal-configure.service "$units/sysinit.target.wants/"
	ln -s ../state.mount ../efi.mount "$units/local-fs.target.wants/"
	# Nobody logs in.
	for unit in cloud-init.target getty.target systemd-logind.service; do ln -s /dev/null "$units/$unit"; done
	# An emulated machine on a busy host finds its disk late.
	mkdir "$top/etc/systemd/system.conf.d"
	printf '[Manager]\nDefaultDeviceTimeoutSec=5min\n' >"$top/etc/systemd/system.conf.d/busy.conf"
	install -m 0755 "$boot/systemd-bless-boot" "$system"
	install -m 0755 "$boot/systemd-bless-boot-generator" "$system/system-generators"
	install -m 0644 "$boot/systemd-bless-boot.service" "$system/system"
	chmod -R u=rwX,go=rX "$work/state"
	read -r start size < <(PATH=$PATH:/usr/sbin:/sbin sfdisk -d "$base" |
		sed -n 's/.*start= *\([0-9]*\), size= *\([0-9]*\),.*name="STATE"/\1 \2/p')
	truncate -s $((size * 512)) "$work/state.img"
	PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -L STATE -m 0 -J size=8 -E lazy_itable_init=0,root_owner=0:0 \
		-d "$work/state" "$work/state.img"
	# Not sparse: what the base has there must go.
	dd if="$work/state.img" of="$work/out.raw" bs=1M seek=$((start * 512 / mib)) conv=notrunc status=none
}

boot_partition
state_partition
mv "$work/out.raw" "$out"
