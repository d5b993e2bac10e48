#!/bin/bash
# Prints the path of a cargo-deny of the pinned version, building it first if there is none in
# PATH. Building it takes minutes, so it is kept in the user's cache, where other clones find it.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.20.2
TOOLS=${XDG_CACHE_HOME:-$HOME/.cache}/anneal/tools

for candidate in "$TOOLS/bin/cargo-deny" "$(command -v cargo-deny || true)"; do
  if [ -x "$candidate" ] && "$candidate" --version | grep -qx "cargo-deny $VERSION"; then
    realpath "$candidate"
    exit
  fi
done

echo "check: building cargo-deny $VERSION into $TOOLS, once; this takes some minutes" >&2
# An unoptimised build without debug information: it reads one lock file, and building it is what costs time.
CARGO_PROFILE_DEV_DEBUG=none cargo install --quiet --locked --debug --root "$TOOLS" --target-dir "$TOOLS/target" \
  "cargo-deny@$VERSION" </dev/null >&2
rm -rf "$TOOLS/target"
realpath "$TOOLS/bin/cargo-deny"
