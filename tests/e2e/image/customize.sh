#!/bin/bash
# Runs inside build.sh when the packages are installed: customize.sh ROOT BUILD_ID
set -euo pipefail
root=$1
build_id=$2

# Units that a sealed machine does not need; timers that would change it.
chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-networkd-wait-online.service \
	systemd-resolved.service serial-getty@ttyS0.service
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	e2scrub_all.timer e2scrub_reap.service fstrim.timer cloud-init-hotplugd.socket systemd-pstore.service \
	systemd-journal-flush.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
	proc-sys-fs-binfmt_misc.automount systemd-binfmt.service sys-kernel-config.mount sys-fs-fuse-connections.mount \
	cloud-init.service cloud-config.service cloud-final.service

# What generators would find out at each boot is known here: cloud-init is wanted, and there is no encrypted, resumed,
# found by type, or old-style thing to start.
mkdir -p "$root/etc/systemd/system-generators"
for generator in cloud-init systemd-cryptsetup systemd-gpt-auto systemd-hibernate-resume systemd-integritysetup \
	systemd-rc-local systemd-run systemd-system-update systemd-sysv systemd-veritysetup; do
	ln -s /dev/null "$root/etc/systemd/system-generators/$generator-generator"
done
ln -s /lib/systemd/system/cloud-init.target "$root/etc/systemd/system/multi-user.target.wants/"

# Drivers for what servers do not have.
for directory in "$root"/usr/lib/modules/*/kernel; do
	(cd "$directory" && rm -rf sound net/bluetooth net/wireless net/mac80211 drivers/bluetooth \
		drivers/{gpu,media,staging,iio,isdn,comedi,video,infiniband,accessibility,auxdisplay,pcmcia,parport} \
		drivers/net/{wireless,can,hamradio,arcnet,fddi,wwan,ieee802154} drivers/input/{touchscreen,joystick,tablet})
	depmod -b "$root" "$(basename "$(dirname "$directory")")"
done
for directory in "$root"/usr/lib/modules/*; do
	chroot "$root" update-initramfs -c -k "$(basename "$directory")" >/dev/null
done

# What nothing here runs: all of perl but its base, tables of character sets, names of devices for people.
rm -rf "$root"/usr/lib/x86_64-linux-gnu/{perl,perl5,gconv,libperl.so*} "$root"/usr/share/{perl,perl5} \
	"$root"/usr/lib/udev/hwdb.{bin,d}

# cloud-init checks configurations against a schema when this is there: a third of its start.
rm -rf "$root"/usr/lib/python3/dist-packages/{jsonschema,pyrsistent,attr,attrs}*

ln -sf /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
: >"$root/etc/machine-id"
rm -f "$root"/etc/hostname "$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd/random-seed
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/etc/apt/sources.list*
rm -rf "$root"/usr/share/{i18n,zoneinfo/right}
echo "BUILD_ID=$build_id" >"$root/etc/anneal-image"
