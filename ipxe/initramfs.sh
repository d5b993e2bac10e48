#!/bin/bash
# initramfs.sh OUT_DIR: makes the agent's netboot environment, OUT_DIR/vmlinuz and OUT_DIR/initramfs.img.
#
# The kernel and its modules come from the distribution's own kernel package, fetched with apt and
# unpacked into a cache; nothing is installed. The initramfs holds the static agent as /init, the
# drivers named in ipxe/modules.list with what they depend on, and nothing else: no shell, no
# libraries. Modules are stored uncompressed inside a zstd archive, so the agent needs no decoder.
#
# Idempotent: does nothing when the agent, the kernel package, the module list and this script are unchanged.
# Needs: cargo, apt-get, dpkg-deb, depmod/modprobe (kmod), cpio, zstd, xz.
# Environment: ANNEAL_KERNEL_DEB=FILE[:FILE...]  use these kernel packages, fetch nothing
#              ANNEAL_AGENT=FILE                 use this agent binary, build nothing
#              CARGO_TARGET_DIR                  as for cargo
set -euo pipefail
shopt -s inherit_errexit

[ $# -eq 1 ] || { echo "usage: $0 OUT_DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
cache=$out/.cache
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

say() { echo "initramfs: $*"; }
die() { echo "initramfs: $*" >&2; exit 1; }
for tool in depmod modprobe cpio zstd xz; do
    command -v "$tool" >/dev/null || die "needs $tool (packages: kmod cpio zstd xz-utils)"
done

# The versioned kernel packages that the distribution's meta package stands for: Debian has image
# and modules in one, Ubuntu in three.
kernel_packages() {
    local meta package version
    for meta in linux-image-amd64 linux-image-generic; do
        package=$(apt-cache depends --important "$meta" 2>/dev/null \
            | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p;T;q' || true)
        [ -n "$package" ] && break
    done
    [ -n "$package" ] || die "apt knows no linux-image-amd64 or linux-image-generic; run apt-get update"
    version=${package#linux-image-}
    echo "$package"
    for package in "linux-modules-$version" "linux-modules-extra-$version"; do
        if apt-cache show "$package" >/dev/null 2>&1; then echo "$package"; fi
    done
}

fetch_kernel() {
    if [ -n "${ANNEAL_KERNEL_DEB:-}" ]; then
        # An absolute path for each, one a line.
        echo "$ANNEAL_KERNEL_DEB" | tr ':' '\n' | xargs -n1 realpath
        return
    fi
    local packages list uris name
    # Not mapfile < <(...): a failure in there would be lost.
    list=$(kernel_packages)
    mapfile -t packages <<<"$list"
    # An empty folder: apt prints nothing for files that are there already.
    rm -rf "$cache/fetch" && mkdir "$cache/fetch"
    uris=$(cd "$cache/fetch" && apt-get download --print-uris "${packages[@]}") || die "apt cannot find ${packages[*]}; run apt-get update"
    # 'URI' NAME SIZE HASH
    while read -r _ name _; do
        if [ ! -s "$cache/$name" ]; then
            say "fetching $name" >&2
            (cd "$cache/fetch" && apt-get download -q "${name%%_*}" >/dev/null 2>&1) || die "apt-get download ${name%%_*} failed"
            mv "$cache"/fetch/*.deb "$cache/$name"
        fi
        echo "$cache/$name"
    done <<<"$uris"
    rm -rf "$cache/fetch"
}

# Unpacks the packages once into $cache/kernel-<digest of their names>.
unpack_kernel() {
    local dir deb
    dir=$cache/kernel-$(printf '%s\n' "$@" | sha256sum | cut -c1-16)
    if [ ! -e "$dir/.complete" ]; then
        rm -rf "$cache"/kernel-*
        mkdir -p "$dir"
        for deb in "$@"; do dpkg-deb -x "$deb" "$dir"; done
        [ -d "$dir/lib/modules" ] || ln -s usr/lib "$dir/lib"
        find "$dir/lib/modules/" -name '*.ko.xz' -exec xz -d {} +
        find "$dir/lib/modules/" -name '*.ko.zst' -exec zstd -q -d --rm {} +
        depmod -b "$dir" "$(ls "$dir/lib/modules")"
        touch "$dir/.complete"
    fi
    echo "$dir"
}

# The wanted modules and all they depend on, as paths below lib/modules/<version>.
wanted_modules() {
    local dir=$1 version=$2 name
    sed 's/#.*//' "$here/modules.list" | tr -s ' \t' '\n' | while read -r name; do
        [ -n "$name" ] || continue
        # A name this kernel lacks or has built in is no error: the list covers several kernels.
        modprobe -d "$dir" -S "$version" --show-depends "$name" 2>/dev/null \
            | sed -n "s|^insmod .*/lib/modules/$version/\(.*\.ko\).*|\1|p" || true
    done | sort -u
}

# archive TREE: TREE as a compressed cpio archive on standard output.
archive() {
    (cd "$1" && find . -mindepth 1 -print0 | LC_ALL=C sort -z \
        | cpio --null --quiet --create --format=newc --owner=0:0 --reproducible) \
        | zstd -q -15 -T0 -c
}

# The first archive: folders and modules. Large, and the same until the kernel or the list changes.
modules_archive() {
    local kernel=$1 version=$2 tree=$cache/tree modules module indexes
    modules=$(wanted_modules "$kernel" "$version")
    [ -n "$modules" ] || die "no module of modules.list is in $version"
    indexes=lib/modules/$version
    rm -rf "$tree"
    mkdir -p "$tree"/{dev,proc,sys,run,tmp,sbin,"$indexes"}
    # The kernel asks for more modules by starting /sbin/modprobe; the agent answers to that name.
    ln -s ../init "$tree/sbin/modprobe"
    while read -r module; do
        install -D -m 0644 "$kernel/$indexes/$module" "$tree/$indexes/$module"
    done <<<"$modules"
    cp "$kernel/$indexes"/modules.{order,builtin} "$tree/$indexes/"
    [ ! -e "$kernel/$indexes/modules.builtin.modinfo" ] || cp "$kernel/$indexes/modules.builtin.modinfo" "$tree/$indexes/"
    depmod -b "$tree" "$version"
    # The agent reads the text indexes; the binary ones are kmod's.
    rm -f "$tree/$indexes"/modules.*.bin "$tree/$indexes"/modules.{order,builtin.modinfo,symbols,devname}
    archive "$tree" >"$cache/modules.img.new"
    rm -rf "$tree"
    mv "$cache/modules.img.new" "$cache/modules.img"
    say "kernel $version with $(echo "$modules" | wc -l) modules packed"
}

digest() { sha256sum | cut -d' ' -f1; }

agent=${ANNEAL_AGENT:-$("$here/agent.sh")}
debs_text=$(fetch_kernel)
mapfile -t debs <<<"$debs_text"
kernel=$(unpack_kernel "${debs[@]}")
version=$(ls "$kernel/lib/modules")

base=$( { sha256sum <"$here/modules.list"; sha256sum <"$0"; printf '%s\n' "${debs[@]##*/}"; } | digest)
stamp=$( { echo "$base"; sha256sum <"$agent"; } | digest)
if [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ] && [ -s "$out/vmlinuz" ] && [ -s "$out/initramfs.img" ]; then
    say "up to date: $out/vmlinuz, $out/initramfs.img ($version)"
    exit 0
fi
if [ "$(cat "$cache/base" 2>/dev/null)" != "$base" ] || [ ! -s "$cache/modules.img" ]; then
    modules_archive "$kernel" "$version"
    echo "$base" >"$cache/base"
fi

# The second archive: the agent. The kernel unpacks both, one after the other.
rm -rf "$cache/agent"
install -D -m 0755 "$agent" "$cache/agent/init"
{ cat "$cache/modules.img"; archive "$cache/agent"; } >"$out/initramfs.img.new"
cp "$kernel/boot/vmlinuz-$version" "$out/vmlinuz.new"
mv "$out/initramfs.img.new" "$out/initramfs.img"
mv "$out/vmlinuz.new" "$out/vmlinuz"
echo "$stamp" >"$cache/stamp"

say "agent: $(stat -c %s "$agent") bytes, kernel $version"
for file in vmlinuz initramfs.img; do
    say "$out/$file: $(stat -c %s "$out/$file") bytes"
done
