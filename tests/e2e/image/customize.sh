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
	proc-sys-fs-binfmt_misc.automount systemd-binfmt.service cloud-init.service cloud-config.service

# Drivers for what servers do not have.
for directory in "$root"/usr/lib/modules/*/kernel; do
	(cd "$directory" && rm -rf sound net/bluetooth net/wireless net/mac80211 drivers/bluetooth \
		drivers/{gpu,media,staging,iio,isdn,comedi,video,infiniband,accessibility,auxdisplay,pcmcia,parport} \
		drivers/net/{wireless,can,hamradio,arcnet,fddi,wwan,ieee802154} drivers/input/{touchscreen,joystick,tablet})
	depmod -b "$root" "$(basename "$(dirname "$directory")")"
done
chroot "$root" update-initramfs -u -k all >/dev/null

# cloud-init checks configurations against a schema when this is there: a third of its start.
rm -rf "$root"/usr/lib/python3/dist-packages/{jsonschema,pyrsistent,attr,attrs}*

ln -sf /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
: >"$root/etc/machine-id"
rm -f "$root"/etc/hostname "$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd/random-seed
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/etc/apt/sources.list*
rm -rf "$root"/usr/share/{i18n,perl/*/unicore/lib,zoneinfo/right}
echo "BUILD_ID=$build_id" >"$root/etc/anneal-image"
