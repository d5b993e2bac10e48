#!/bin/bash
# Fetches the network boot programs (iPXE) and puts them into a directory:
#
#   ipxe/fetch.sh OUTPUT_DIR
#
# They come from the distribution's own `ipxe` package, checked by apt's signatures. A release
# whose package is too old (Debian 12 has 1.0.0 of 2019) takes that one package from the next
# release: this machine's own apt sources are read (both forms, with their mirror and keyring), the
# suite is replaced in a private copy, and everything apt writes stays in a temporary directory.
# Nothing under /etc/apt or /var/lib/apt changes, and nothing is installed. No root needed.
#
# ANNEAL_IPXE_DEB=FILE   use this package file instead of apt (machines without a network)
#
# Running it again is cheap: it ends at once when OUTPUT_DIR/VERSION vouches for the files.
set -euo pipefail

readonly MIN_VERSION=1.21.1   # first with autoexec.ipxe and an arm64 build
readonly NEWER_DEBIAN=trixie  # first Debian release that has it

die() { echo "ipxe/fetch.sh: $*" >&2; exit 1; }

[ $# -eq 1 ] || die "usage: ipxe/fetch.sh OUTPUT_DIR"
for tool in dpkg dpkg-deb sha256sum awk flock; do
    command -v "$tool" >/dev/null || die "$tool is missing: this needs Debian, Ubuntu or a machine with dpkg and coreutils"
done
mkdir -p "$1"
out=$(cd "$1" && pwd)

# One at a time: whoever waited finds the work done.
mkdir -p "$out/.cache"
exec 9>"$out/.cache/fetch.lock"
flock 9

# VERSION: "ipxe <version>", then the SHA-256 of each file as sha256sum prints it.
if [ -f "$out/VERSION" ] && grep -q '^ipxe ' "$out/VERSION" \
    && (cd "$out" && sed 1d VERSION | sha256sum --check --strict --quiet >/dev/null 2>&1); then
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Copies this machine's apt sources that offer one of the suites $1 (a|b|c) and component $2, with
# suite $3 in its place unless that is empty: one-line entries go to $work/etc/one.list, deb822
# paragraphs to $work/etc/deb822.sources. Mirrors, keyrings and options come along unchanged.
derive_sources() {
    local list parts
    eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
    : >"$work/etc/one.list"; : >"$work/etc/deb822.sources"
    local file
    for file in "$list" "$parts"/*.list; do
        [ -r "$file" ] || continue
        awk -v from="$1" -v component="$2" -v to="$3" '
            BEGIN { n = split(from, list, "|"); for (i = 1; i <= n; i++) wanted[list[i]] = 1 }
            { sub(/#.*/, "") }
            $1 != "deb" { next }
            {
                options = ""; rest = $0; sub(/^[ \t]*deb[ \t]+/, "", rest)
                if (match(rest, /^\[[^]]*\][ \t]*/)) {
                    options = substr(rest, 1, RLENGTH); rest = substr(rest, RLENGTH + 1)
                }
                n = split(rest, word, /[ \t]+/)
                if (!(word[2] in wanted)) next
                for (i = 3; i <= n; i++) if (word[i] == component) {
                    print "deb " options word[1] " " (to == "" ? word[2] : to) " " component
                    next
                }
            }' "$file" >>"$work/etc/one.list"
    done
    for file in "$parts"/*.sources; do
        [ -r "$file" ] || continue
        awk -v from="$1" -v component="$2" -v to="$3" '
            function has(text, wanted,   word, n, i) {
                n = split(text, word, /[ \t\n]+/)
                for (i = 1; i <= n; i++) if (word[i] in wanted) return word[i]
                return ""
            }
            function flush(   suite) {
                suite = has(field["suites"], suites)
                if (has(field["types"], types) != "" && suite != "" &&
                    has(field["components"], components) != "" &&
                    tolower(field["enabled"]) !~ /^[ \t]*(no|false|off|0)/)
                    print "Types: deb\nSuites: " (to == "" ? suite : to) \
                          "\nComponents: " component "\n" kept
                kept = ""; name = ""; split("", field)
            }
            BEGIN {
                types["deb"] = 1; components[component] = 1
                n = split(from, list, "|"); for (i = 1; i <= n; i++) suites[list[i]] = 1
            }
            /^#/ { next }
            /^[ \t]*$/ { flush(); next }
            /^[^ \t]/ { name = tolower($0); sub(/:.*/, "", name) }
            {
                value = $0; if ($0 !~ /^[ \t]/) sub(/^[^:]*:/, "", value)
                field[name] = field[name] value "\n"
                if (name != "types" && name != "suites" && name != "components") kept = kept $0 "\n"
            }
            END { flush() }' "$file" >>"$work/etc/deb822.sources"
    done
    [ -s "$work/etc/one.list" ] || [ -s "$work/etc/deb822.sources" ]
}

# Writes an apt configuration in which only $work is read and written, pinned to one package of
# one origin ($1, as the archive signs it: Debian or Ubuntu).
private_apt() {
    mkdir -p "$work"/{etc,state/lists/partial,cache/archives/partial,deb}
    : >"$work/state/status"
    chmod 755 "$work"
    cat >"$work/etc/preferences" <<PREFERENCES
Package: *
Pin: release *
Pin-Priority: -1

Package: ipxe
Pin: release o=$1
Pin-Priority: 990
PREFERENCES
    # Hooks of this machine (some clean the machine's own cache) are not ours to run.
    cat >"$work/etc/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/etc/sources.d";
Dir::Etc::preferences "$work/etc/preferences";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
    mkdir -p "$work/etc/sources.d"
    if [ "$(id -u)" = 0 ] && id _apt >/dev/null 2>&1; then
        chown _apt "$work"/{state/lists/partial,cache/archives/partial,deb}
    fi
}

fetch_by_apt() {
    command -v apt-get >/dev/null || die "apt-get is missing; give a package file in ANNEAL_IPXE_DEB"
    local ID="" VERSION_ID="" VERSION_CODENAME="" origin component to=""
    # shellcheck disable=SC1091
    . /etc/os-release
    case $ID in
        debian) origin=Debian component=main
            [ -n "$VERSION_ID" ] && [ "${VERSION_ID%%.*}" -lt 13 ] && to=$NEWER_DEBIAN ;;
        ubuntu) origin=Ubuntu component=universe ;;
        *) die "this is neither Debian nor Ubuntu; give a Debian ipxe package (>= $MIN_VERSION) in ANNEAL_IPXE_DEB" ;;
    esac
    private_apt "$origin"
    local suites=$VERSION_CODENAME
    [ "$ID" = debian ] && suites="$suites|stable|oldstable|testing|unstable|sid"
    derive_sources "$suites" "$component" "$to" \
        || die "found no $origin source for \"$VERSION_CODENAME $component\" in this machine's apt sources"
    [ ! -s "$work/etc/one.list" ] || cp "$work/etc/one.list" "$work/etc/sources.d/anneal.list"
    [ ! -s "$work/etc/deb822.sources" ] || cp "$work/etc/deb822.sources" "$work/etc/sources.d/anneal.sources"

    # One source of several may fail (a mirror without that suite); what counts is the candidate.
    apt-get -q -c "$work/etc/apt.conf" update >"$work/update.log" 2>&1 || true
    local version
    version=$(apt-cache -c "$work/etc/apt.conf" policy ipxe | awk '$1 == "Candidate:" { print $2 }')
    if [ -z "$version" ] || [ "$version" = "(none)" ]; then
        cat "$work/update.log" >&2
        die "apt offers no ipxe package from $origin ${to:-$VERSION_CODENAME}"
    fi
    (cd "$work/deb" && apt-get -q -c "$work/etc/apt.conf" download "ipxe=$version" >"$work/download.log" 2>&1) \
        || { cat "$work/download.log" >&2; die "apt could not download ipxe $version"; }
    deb=$(echo "$work"/deb/ipxe_*.deb)
}

if [ -n "${ANNEAL_IPXE_DEB:-}" ]; then
    deb=$ANNEAL_IPXE_DEB
    [ -r "$deb" ] || die "cannot read $deb (ANNEAL_IPXE_DEB)"
else
    fetch_by_apt
fi

version=$(dpkg-deb --field "$deb" Version) || die "$deb is not a Debian package"
[ "$(dpkg-deb --field "$deb" Package)" = ipxe ] || die "$deb is not the ipxe package"
dpkg --compare-versions "$version" ge "$MIN_VERSION" \
    || die "ipxe $version is too old, at least $MIN_VERSION is needed"
dpkg-deb --extract "$deb" "$work/root"

# place NAME CANDIDATE...: the first candidate in the package becomes NAME.
place() {
    local name=$1 candidate; shift
    for candidate; do
        if [ -f "$work/root/usr/lib/ipxe/$candidate" ]; then
            install -m 644 "$work/root/usr/lib/ipxe/$candidate" "$out/$name.new"
            mv "$out/$name.new" "$out/$name"
            files+=("$name")
            return 0
        fi
    done
    return 1
}
files=()
for want in "undionly.kpxe undionly.kpxe" "snponly.efi snponly.efi" "ipxe.efi ipxe-amd64.efi ipxe.efi"; do
    # shellcheck disable=SC2086
    place $want || die "ipxe $version lacks ${want%% *}"
done
place ipxe-arm64.efi ipxe-arm64.efi \
    || echo "ipxe/fetch.sh: ipxe $version has no arm64 build; arm64 machines will not boot over the network" >&2

{ echo "ipxe $version"; (cd "$out" && sha256sum "${files[@]}"); } >"$out/VERSION.new"
mv "$out/VERSION.new" "$out/VERSION"
echo "ipxe $version: ${files[*]} in $out"
