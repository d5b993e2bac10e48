#!/bin/bash
# What the machines of the Vagrantfile need around them: a storage pool, the isolated network
# `anneal` (bridge anneal0, 10.77.0.1/24, no DHCP), and sushy-emulator on it as their BMC.
# Vagrant calls it; safe to call again.
#
#   lab.sh start
#   lab.sh stop     when no machine is left
set -euo pipefail
cd "$(dirname "$0")"

uri=${LIBVIRT_DEFAULT_URI:-qemu:///system}
venv=$(realpath -m ../.cache/venv)
state=${ANNEAL_VAGRANT_STATE:-$PWD/.lab}
password_file=bmc-password

die() { printf 'lab: %s\n' "$*" >&2; exit 1; }
libvirt() { virsh --quiet --connect "$uri" "$@"; }

# Our emulator's process, if it runs; a number that somebody else has by now does not count.
emulator() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 1
  [ -e "/proc/$pid/cmdline" ] || return 1
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$state/sushy.conf" || return 1
  echo "$pid"
}

start() {
  command -v virsh >/dev/null || die 'virsh is missing: apt install libvirt-clients'
  libvirt version >/dev/null || die "no libvirtd at $uri: apt install libvirt-daemon-system, and be root or in the group libvirt"
  [ -x "$venv/bin/sushy-emulator" ] || die "$venv has no sushy-emulator: run \`make setup\` in the repository"
  if ! libvirt pool-info default >/dev/null 2>&1; then
    libvirt pool-define-as default dir --target /var/lib/libvirt/images
    libvirt pool-build default
    libvirt pool-autostart default
  fi
  libvirt pool-list --name | grep -qx 'default *' || libvirt pool-start default
  if ! libvirt net-info anneal >/dev/null 2>&1; then
    libvirt net-define network.xml
  fi
  libvirt net-list --name | grep -qx 'anneal *' || libvirt net-start anneal
  emulator >/dev/null || start_emulator
}

start_emulator() {
  local password hash pid
  password=$(<"$password_file")
  hash=$(PASSWORD=$password "$venv/bin/python" -c '
import bcrypt, os
print("root:" + bcrypt.hashpw(os.environb[b"PASSWORD"], bcrypt.gensalt()).decode())')
  (umask 077; printf '%s\n' "$hash" >"$state/htpasswd")
  cat >"$state/sushy.conf" <<CONF
SUSHY_EMULATOR_LIBVIRT_URI = '$uri'
SUSHY_EMULATOR_IGNORE_BOOT_DEVICE = False
SUSHY_EMULATOR_AUTH_FILE = '$state/htpasswd'
SUSHY_EMULATOR_STATE_DIR = '$state'
CONF
  setsid "$venv/bin/sushy-emulator" --config "$state/sushy.conf" --interface 10.77.0.1 --port 8000 \
    >"$state/sushy.log" 2>&1 </dev/null 9>&- &
  pid=$!
  echo "$pid" >"$state/pid"
  for _ in $(seq 300); do
    if curl -sf --max-time 2 -o /dev/null http://10.77.0.1:8000/redfish/v1/; then
      echo "lab: BMC at http://10.77.0.1:8000 (user root, password in vagrant/$password_file)"
      return
    fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  die "the BMC does not answer: $(tail -3 "$state/sushy.log")"
}

stop() {
  local pid
  if libvirt list --all --name | grep -q '^anneal-'; then
    return # other machines still need it
  fi
  if pid=$(emulator); then
    kill "$pid"
    while emulator >/dev/null; do sleep 0.1; done
  fi
  rm -rf "$state"
  libvirt net-destroy anneal >/dev/null 2>&1 || true
  libvirt net-undefine anneal >/dev/null 2>&1 || true
}

case ${1:-} in start | stop) ;; *) die 'usage: lab.sh start|stop' ;; esac
mkdir -p "$state"
# Vagrant works on several machines at a time.
exec 9>"${TMPDIR:-/tmp}/anneal-lab-$(id -u).lock"
flock 9
"$1"
