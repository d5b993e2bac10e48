#!/bin/bash
# Builds kube-apiserver from the Go modules of its release, for the test of join tokens. Minutes
# the first time; nothing when it is newer than its sources.
#
#   scripts/kube-apiserver.sh .cache/kube-apiserver
set -euo pipefail
source=$(cd "$(dirname "$0")/../tests/conformance/kube-apiserver" && pwd)
target=$(realpath -m "$1")
fresh=yes
for file in go.mod go.sum main.go; do [ "$target" -nt "$source/$file" ] || fresh=; done
[ -z "$fresh" ] || exit 0
go=$(command -v go || echo /usr/local/go/bin/go)
[ -x "$go" ] || { echo "kube-apiserver: Go is missing: install Go 1.24 or later from https://go.dev/dl" >&2; exit 1; }
[ -x /usr/bin/etcd ] || { echo "kube-apiserver: etcd is missing: apt-get install etcd-server" >&2; exit 1; }
mkdir -p "$(dirname "$target")"
cd "$source"
GOFLAGS=-mod=readonly "$go" build -trimpath -ldflags '-s -w' -o "$target.new" .
mv "$target.new" "$target"
