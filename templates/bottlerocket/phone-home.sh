#!/bin/sh
# Runs in a host container, whose root is its own image: brings what the call-home script reads.
set -eu
mkdir -p /etc/anneal /run/anneal
cat >/etc/anneal/ca.pem <<'END'
{{ server.ca_pem | trim }}
END
cat >/etc/anneal/installed <<'END'
{{ render('common/installed') | trim }}
END
(umask 077 && cat >/run/anneal/phone-home.conf) <<'END'
{{ render('common/phone-home.conf') | trim }}
END
cat >/etc/anneal/phone-home.sh <<'END'
{{ render('common/phone-home.sh') | trim }}
END
[ -s /etc/machine-id ] || printf '%s\n' bottlerocket >/etc/machine-id
exec sh /etc/anneal/phone-home.sh /run/anneal/phone-home.conf
