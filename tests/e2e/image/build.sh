#!/bin/bash
# Builds a real Debian as one raw disk image: build.sh OUT.raw
#
# GPT with five partitions:
#   1 BIOS    GRUB's core for machines that boot by BIOS
#   2 ESP     vfat: GRUB for UEFI (removable path), grub.cfg, kernel, initramfs
#   3 CONFIG  vfat, label CIDATA: user-data, meta-data, network-config for cloud-init
#   4 ROOT    squashfs, read-only, and its dm-verity hash tree
#   5 STATE   ext4, label STATE: the writable layer over ROOT
#
# Needs root, and the packages that it names when they are missing. Packages come from wherever this machine's
# apt gets them. Built once: OUT.raw.key remembers from what.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT.raw}
suite=${ANNEAL_IMAGE_SUITE:-$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo bookworm)}
mib=$((1024 * 1024))
state_mib=${ANNEAL_IMAGE_STATE_MIB:-128}

packages=systemd-sysv,systemd-resolved,udev,dbus,kmod,iproute2,login,passwd,e2fsprogs
packages+=,initramfs-tools,dmsetup,zstd,linux-image-amd64,cloud-init,curl,ca-certificates

key=$({
	echo "$suite $state_mib"
	cd "$here" && cat build.sh customize.sh bios_boot.py && find root -type f | LC_ALL=C sort | xargs sha256sum
} | sha256sum | cut -c1-64)
if [ -f "$out" ] && [ "$(cat "$out.key" 2>/dev/null)" = "$key" ]; then
	echo "$out is up to date"
	exit 0
fi

missing=()
for tool in mmdebstrap:mmdebstrap mksquashfs:squashfs-tools mkfs.vfat:dosfstools mcopy:mtools \
	sfdisk:fdisk mkfs.ext4:e2fsprogs grub-mkimage:grub-common veritysetup:cryptsetup-bin python3:python3; do
	command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
[ -d /usr/lib/grub/i386-pc ] || missing+=(grub-pc-bin)
[ -d /usr/lib/grub/x86_64-efi ] || missing+=(grub-efi-amd64-bin)
[ ${#missing[@]} = 0 ] || { echo "build.sh: packages needed: apt-get install ${missing[*]}" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "build.sh: must run as root" >&2; exit 1; }

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$(dirname "$out")/.image.XXXXXX")
trap 'rm -rf "$work"' EXIT

root_tree() {
	local trim=(doc man locale info lintian linda bash-completion)
	local options=()
	for name in "${trim[@]}"; do options+=("--dpkgopt=path-exclude=/usr/share/$name/*"); done
	# The kernel package must not make its initramfs: customize.sh does, once, when all settings are there.
	INITRD=No mmdebstrap --quiet --variant=minbase --include="$packages" \
		--aptopt='APT::Install-Recommends "false"' "${options[@]}" \
		--customize-hook="cp -rT '$here/root' \"\$1\"" \
		--customize-hook="chmod 0755 \"\$1\"/etc/initramfs-tools/hooks/anneal" \
		--customize-hook="'$here/customize.sh' \"\$1\" $key" \
		"$suite" "$work/root"
	mv "$work"/root/boot/vmlinuz-* "$work/vmlinuz"
	mv "$work"/root/boot/initrd.img-* "$work/initrd.img"
	rm -rf "$work"/root/boot/* "$work"/root/vmlinuz* "$work"/root/initrd.img*
}

# The read-only root and its hash tree in one file: $work/root.img; sets blocks and root_hash.
root_image() {
	mksquashfs "$work/root" "$work/root.img" -quiet -no-progress -comp zstd -Xcompression-level 12 \
		-b 64K -noappend -xattrs -e proc/\* sys/\* dev/\* run/\* tmp/\* >/dev/null
	truncate -s %4096 "$work/root.img"
	blocks=$(($(stat -c %s "$work/root.img") / 4096))
	root_hash=$(veritysetup format --no-superblock --salt=- --data-blocks="$blocks" \
		--hash-offset=$((blocks * 4096)) "$work/root.img" "$work/root.img" | awk '/^Root hash:/ {print $3}')
	[ ${#root_hash} = 64 ] || { echo "build.sh: veritysetup gave no root hash" >&2; exit 1; }
}

# A UUID that depends only on the root's contents and a name.
uuid() {
	local hex
	hex=$(echo "$root_hash $1" | sha256sum)
	echo "${hex:0:8}-${hex:8:4}-4${hex:13:3}-8${hex:17:3}-${hex:20:12}"
}

esp() {
	local prefix_modules="part_gpt fat normal configfile linux echo all_video reboot"
	grub-mkimage -O x86_64-efi -p /grub -o "$work/bootx64.efi" $prefix_modules
	grub-mkimage -O i386-pc -p '(,gpt2)/grub' -o "$work/core.img" biosdisk $prefix_modules
	cat >"$work/grub.cfg" <<-END
		set timeout=0
		linux /vmlinuz boot=anneal anneal.root=$(uuid root) anneal.state=$(uuid state) anneal.verity=$blocks:$root_hash console=tty0 console=ttyS0,115200 loglevel=5 systemd.gpt_auto=0 ro
		initrd /initrd.img
		boot
	END
	truncate -s 64M "$work/esp.img"
	mkfs.vfat -n ESP -i "$(uuid esp | cut -c1-8)" "$work/esp.img" >/dev/null
	mmd -i "$work/esp.img" ::EFI ::EFI/BOOT ::grub
	mcopy -i "$work/esp.img" "$work/bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
	mcopy -i "$work/esp.img" "$work/grub.cfg" ::grub/grub.cfg
	mcopy -i "$work/esp.img" "$work/vmlinuz" "$work/initrd.img" ::
}

disk() {
	local disk=$work/disk.raw root_mib
	root_mib=$((($(stat -c %s "$work/root.img") + 4 * mib - 1) / (4 * mib) * 4))
	# Partitions begin at multiples of 4 MiB, the frame size of a sealed image: what does not
	# change between two builds is then the same frame.
	local esp=4 config=68 root=84
	local state=$((root + root_mib))
	truncate -s $(((state + state_mib + 4) * mib)) "$disk"
	sfdisk --quiet "$disk" <<-END
		label: gpt
		label-id: $(uuid disk)
		unit: sectors
		start=$((1 * 2048)), size=$((1 * 2048)), type=21686148-6449-6E6F-744E-656564454649, uuid=$(uuid bios), name=BIOS
		start=$((esp * 2048)), size=$((64 * 2048)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=$(uuid esp), name=ESP
		start=$((config * 2048)), size=$((16 * 2048)), type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid=$(uuid config), name=CONFIG
		start=$((root * 2048)), size=$((root_mib * 2048)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=$(uuid root), name=ROOT
		start=$((state * 2048)), size=$((state_mib * 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=$(uuid state), name=STATE
	END

	truncate -s 16M "$work/config.img"
	mkfs.vfat -n CIDATA -i "$(uuid config | cut -c1-8)" "$work/config.img" >/dev/null
	truncate -s "${state_mib}M" "$work/state.img"
	mkfs.ext4 -q -L STATE -U "$(uuid state-fs)" -m 0 -J size=8 -E "lazy_itable_init=0,hash_seed=$(uuid hash)" "$work/state.img"

	place() { dd if="$work/$1" of="$disk" bs=1M seek="$2" conv=notrunc,sparse status=none; }
	place esp.img $esp
	place config.img $config
	place root.img $root
	place state.img $state
	python3 "$here/bios_boot.py" "$disk" /usr/lib/grub/i386-pc/boot.img "$work/core.img" 2048 2048
}

# In a function, so that bash has read all of this file before the minutes that it takes.
main() {
	root_tree
	root_image
	esp
	disk
	mv "$work/disk.raw" "$out"
	echo "$key" >"$out.key"
	echo "built $out: $(($(stat -c %s "$out") / mib)) MiB, root $(($(stat -c %s "$work/root.img") / mib)) MiB, initramfs $(($(stat -c %s "$work/initrd.img") / mib)) MiB"
}

main
exit
