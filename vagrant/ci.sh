#!/bin/bash
# One scenario of the Vagrant lab, from nothing to nothing, in namespaces of its own: neither a
# libvirtd nor a network of the host is touched, and nothing is left when it ends, however it ends.
#
# A machine comes up from the Vagrantfile; it is powered through Redfish; its firmware's first
# DHCPDISCOVER reaches the bridge; and anneal, if it has been built, offers it its address.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
anneal=$(realpath -m "${ANNEAL:-../target/debug/anneal}")
netboot=$(realpath -m "${NETBOOT:-../.cache/netboot}")

die() { printf 'vagrant-test: %s\n' "$*" >&2; exit 1; }
say() { printf 'vagrant-test: %s\n' "$*"; }

if [ "${1:-}" != --inside ]; then
  [ "$(id -u)" = 0 ] || die 'needs root for its namespaces: use sudo'
  command -v vagrant >/dev/null || die 'vagrant is missing: apt install vagrant vagrant-libvirt'
  exec timeout --foreground 1800 unshare --net --mount --propagation private --pid --fork --kill-child \
    --mount-proc -- "$here/ci.sh" --inside
fi

# ---- inside

for dir in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
  mkdir -p "$dir"
  mount -t tmpfs -o mode=755 tmpfs "$dir"
done
mkdir -p /run/libvirt /run/lock /var/lib/libvirt/{images,qemu,network,dnsmasq} /etc/libvirt/{qemu/networks,storage}
# Below /run, which is private now; the host's /tmp may hold this very clone.
work=/run/lab
mkdir -p "$work/tmp"
export TMPDIR=$work/tmp
ip link set lo up
cat >/etc/libvirt/libvirtd.conf <<'CONF'
auth_unix_ro = "none"
auth_unix_rw = "none"
CONF
cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 0
stdio_handler = "file"
CONF
export VAGRANT_HOME=$work/home VAGRANT_DOTFILE_PATH=$work/dot VAGRANT_CHECKPOINT_DISABLE=1
export ANNEAL_VAGRANT_STATE=$work/state LIBVIRT_DEFAULT_URI=qemu:///system
export HOME=$work

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local limit=$1 what=$2 begin=$SECONDS
  shift 2
  until "$@"; do
    [ $((SECONDS - begin)) -lt "$limit" ] || die "waited ${limit} s for $what; $(evidence)"
    sleep 0.2
  done
}

evidence() {
  local log
  for log in libvirtd sniff anneal; do
    [ ! -s "$work/$log.log" ] || printf '\n--- %s\n%s' "$log" "$(tail -15 "$work/$log.log")"
  done
  [ ! -s "$work/state/sushy.log" ] || printf '\n--- sushy\n%s' "$(tail -15 "$work/state/sushy.log")"
}

libvirtd --config /etc/libvirt/libvirtd.conf >"$work/libvirtd.log" 2>&1 &
wait_for 60 'libvirtd to answer' virsh --quiet version >/dev/null 2>&1

say 'the Vagrantfile is valid'
vagrant validate
vagrant up r1n1 --provider libvirt
virsh --quiet dumpxml anneal-r1n1 >"$work/r1n1.xml"
tr -d '\n' <"$work/r1n1.xml" | grep -qE "<interface.*<boot order='1'/>.*</interface>" || die "r1n1 does not boot over the network: $(cat "$work/r1n1.xml")"
grep -q "52:54:00:aa:00:01" "$work/r1n1.xml" || die 'r1n1 has another MAC than the inventory says'
say 'r1n1 is up and boots over the network'

# What a BMC's client does, by hand. The daemon's own client is tested in bmc/tests.
bmc=http://10.77.0.1:8000/redfish/v1/Systems/00000000-0000-4000-8000-000000000001
redfish() { curl -sf --max-time 30 -u "root:$(cat bmc-password)" "$@"; }
reset() {
  redfish -X POST -H 'Content-Type: application/json' -d "{\"ResetType\": \"$1\"}" \
    "$bmc/Actions/ComputerSystem.Reset" || die "the BMC refused $1; $(evidence)"
}
state_is() { [ "$(virsh --quiet domstate anneal-r1n1 | head -1)" = "$1" ]; }
curl -sf -o /dev/null "$bmc" && die 'the BMC answers without a password'
reset ForceOff
wait_for 30 'r1n1 to be off' state_is 'shut off'
say 'r1n1 is off, by Redfish'
boot_from() {
  redfish -X PATCH -H 'Content-Type: application/json' "$bmc" \
    -d "{\"Boot\": {\"BootSourceOverrideTarget\": \"$1\", \"BootSourceOverrideEnabled\": \"Once\"}}" ||
    die "the BMC refused boot device $1; $(evidence)"
  redfish "$bmc" | grep -q "\"BootSourceOverrideTarget\": \"$1\"" || die "boot device $1 was not kept; $(evidence)"
}
boot_from Hdd
boot_from Pxe

if [ -x "$anneal" ] && [ -e "$netboot/vmlinuz" ]; then
  "$anneal" serve --interface anneal0 --state-dir "$work/anneal" --netboot-dir "$netboot" \
    --password-dir . >"$work/anneal.log" 2>&1 &
  export ANNEAL_CONTEXT=$work/anneal/admin.context.json
  applied() { "$anneal" apply -f machines.yaml >"$work/apply.log" 2>&1; }
  wait_for 60 'anneal to take the inventory' applied
  expect=OFFER
  say 'anneal serves the bridge'
else
  expect=DISCOVER
  say "no $anneal with $netboot: only the machine's side is looked at"
fi

python3 sniff.py anneal0 52:54:00:aa:00:01 >"$work/sniff.log" 2>&1 &
wait_for 60 'the sniffer' grep -q listening "$work/sniff.log"
reset On
wait_for 30 'r1n1 to be on' state_is running
wait_for 120 'the DHCPDISCOVER of its firmware' grep -q '^DISCOVER' "$work/sniff.log"
say 'its firmware asks for an address'
if [ $expect = OFFER ]; then
  wait_for 60 "anneal's offer" grep -q '^OFFER 10.77.0.11$' "$work/sniff.log"
  say 'anneal offers 10.77.0.11'
fi

vagrant destroy -f
[ -z "$(virsh --quiet list --all --name)" ] || die 'vagrant destroy left a machine'
[ -z "$(ls /var/lib/libvirt/images)" ] || die "vagrant destroy left a disk: $(ls /var/lib/libvirt/images)"
[ -z "$(virsh --quiet net-list --all --name)" ] || die 'lab.sh left its network'
say 'all removed; passed'
