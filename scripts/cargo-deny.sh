#!/bin/bash
# Prints the path of a cargo-deny of the pinned version, building it into .cache/tools first if
# there is none in PATH. Used by `make check` only, because building it takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.20.2

for candidate in .cache/tools/bin/cargo-deny "$(command -v cargo-deny || true)"; do
  if [ -x "$candidate" ] && "$candidate" --version | grep -qx "cargo-deny $VERSION"; then
    realpath "$candidate"
    exit
  fi
done

echo "check: building cargo-deny $VERSION into .cache/tools, once; this takes some minutes" >&2
# An unoptimised build: it reads one lock file, and building it is what costs time.
cargo install --quiet --locked --debug --root .cache/tools --target-dir .cache/tools/target \
  "cargo-deny@$VERSION" </dev/null >&2
rm -rf .cache/tools/target
realpath .cache/tools/bin/cargo-deny
