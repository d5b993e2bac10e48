#!/bin/sh
# Tells the provisioner once that this machine booted the system it was given. Tries for
# ten minutes; done when the report was taken (204) or had been taken before (410).
# The argument is curl's configuration: address and token. It is deleted when done. `installed`
# and `ca.pem` lie beside this script.
set -u
config=$1
here=${0%/*}
report=$config.json
[ -s "$config" ] || exit 0
. /etc/os-release
. "$here/installed"

# A clock that lost its battery would make the server's certificate look not yet valid. A
# run's id begins with the milliseconds at which it was made (RFC 9562, UUIDv7).
made=$(printf '%d' "0x$(printf %s "$RUN" | tr -d - | cut -c1-12)" 2>/dev/null) || made=0
[ "$(date +%s)" -ge $((made / 1000)) ] || date --set="@$((made / 1000))" >/dev/null

# What really runs, where the system can tell: the release, an image's own version, a bootc image's digest. The
# provisioner compares it with what it installed, so a version that the image's publisher does not count by is left out.
os=${PRETTY_NAME:-$NAME}
version=${VERSION_ID:-}
case "$OS" in
fcos) version=${OSTREE_VERSION:-$version} ;;
kairos) # os-release is that of the distribution below it; its own version begins with a v
  [ ! -r /etc/kairos-release ] || . /etc/kairos-release
  version=${KAIROS_VERSION:-} IMAGE_VERSION=
  [ -z "$version" ] || os="$os, Kairos $version"
  version=${version#v}
  ;;
rhcos | scos) version= IMAGE_VERSION= ;; # the cluster replaced what was installed before this could call
bottlerocket) version= IMAGE_VERSION= ;; # this is a container: its release is not the machine's
esac
[ -z "${IMAGE_VERSION:-}" ] || os="$os, image ${IMAGE_ID:-} $IMAGE_VERSION"
if command -v bootc >/dev/null 2>&1; then
  booted=$(bootc status --json --format-version=1 2>/dev/null | tr -d ' \n' | sed -n 's/.*"booted":{"image":{\(.*\)/\1/p')
  digest=$(printf %s "$booted" | sed -n 's/[^}]*}[^}]*"imageDigest":"\([^"]*\)".*/\1/p')
  [ -z "$digest" ] || os="$os, bootc $digest"
fi

text() { printf '"%s"' "$(printf %s "$1" | tr -d '[:cntrl:]' | cut -c1-250 | sed 's/[\\"]/\\&/g')"; }
printf '{"machine_id":%s,"os":%s,"version":%s,"image_version":%s,"hostname":%s,"kernel":%s,"image":%s}\n' \
  "$(text "$(cat /etc/machine-id)")" "$(text "$os")" "$(text "$version")" "$(text "${IMAGE_VERSION:-}")" \
  "$(text "$(uname -n)")" "$(text "$(uname -r)")" "$(text "$IMAGE")" >"$report"

uptime() { cut -d. -f1 /proc/uptime; }
end=$(($(uptime) + 600))
pause=1
until [ "$(uptime)" -gt "$end" ]; do
  status=$(curl --config "$config" --silent --show-error --max-time 20 --cacert "$here/ca.pem" \
    --header 'Content-Type: application/json' --data-binary "@$report" \
    --output /dev/null --write-out '%{http_code}')
  case "$status" in
  204 | 410)
    echo "anneal: called home, answer $status"
    rm -f "$config" "$report"
    exit 0
    ;;
  esac
  echo "anneal: calling home failed, answer $status; again in $pause s"
  sleep "$pause"
  [ "$pause" -ge 30 ] || pause=$((pause * 2))
done
echo "anneal: calling home failed, giving up" >&2
exit 1
