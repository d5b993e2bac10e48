#!/bin/bash
# Prints the path of a coreos-installer of the pinned version, building it first from crates.io if there is none. Building
# it takes minutes, so it is kept in the user's cache, where other clones find it. Needs libssl-dev, liblzma-dev and
# libzstd-dev.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.27.0
TOOLS=${XDG_CACHE_HOME:-$HOME/.cache}/anneal/tools

for candidate in "$TOOLS/bin/coreos-installer" "$(command -v coreos-installer || true)"; do
  if [ -x "$candidate" ] && "$candidate" --version | grep -qx "coreos-installer $VERSION"; then
    realpath "$candidate"
    exit
  fi
done

echo "coreos-installer: building $VERSION into $TOOLS, once; this takes some minutes" >&2
# An unoptimised build without debug information: it writes small images, and building it is what costs time.
CARGO_PROFILE_DEV_DEBUG=none cargo install --quiet --locked --debug --no-default-features --bin coreos-installer \
  --root "$TOOLS" --target-dir "$TOOLS/target-coreos-installer" "coreos-installer@$VERSION" </dev/null >&2
rm -rf "$TOOLS/target-coreos-installer"
realpath "$TOOLS/bin/coreos-installer"
