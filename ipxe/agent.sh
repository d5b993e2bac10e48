#!/bin/bash
# Builds the agent as it travels to machines, and prints where it is. Static, so that it runs where there is no
# libc. Its own cargo run and folder, because the daemon and the agent must not share features (TLS provider)
# or flags.
#
# Environment: CARGO_TARGET_DIR  as for cargo
#              CARGO             the path of a cargo with rustc beside it, for callers whose PATH has none
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=x86_64-unknown-linux-gnu
cd "$root"
case ${CARGO:-} in
    */*) PATH=$(dirname "$CARGO"):$PATH ;;
esac
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --quiet -p anneal-agent --profile agent --target $target >&2
echo "${CARGO_TARGET_DIR:-$root/target}/$target/agent/anneal-agent"
