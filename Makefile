# `make help` lists the targets. Everything that is fetched or made lands in .cache/ and target/.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The virtual rack and the image builder need root.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
# Tests are built by whoever runs make, and run by root: they make network namespaces.
AS_ROOT := $(if $(SUDO),CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_RUNNER="$(SUDO)")
NETBOOT := .cache/netboot
NETBOOT_READY := ANNEAL_NETBOOT="$(CURDIR)/$(NETBOOT)"
IMAGE := .cache/debian.raw
RACK := target/debug/virtual-rack

# The daemon's side of the workspace. Everything that builds it selects the same packages with the same features, so
# that nothing is compiled twice: the features of a dependency depend on who is selected, and on whether tests are.
SIDE := --workspace --exclude anneal-agent

.PHONY: help setup build netboot image demo lab lab-down vagrant-setup vagrant-test deb test check fuzz bench bench-setup \
  test-workspace test-agent test-scenarios test-kubernetes power-cuts test-coreos-installer check-format check-lints check-deny advisories

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (Debian 12+, Ubuntu); says what and why
	@scripts/setup.sh

build: setup ## build the daemon, the CLI and the virtual rack
	@# There are no examples: asking for them makes cargo count the features that tests need.
	@cargo build --quiet $(SIDE) --bins --examples

netboot: setup ## boot files, kernel and the agent's initramfs, in .cache/netboot
	@ipxe/fetch.sh $(NETBOOT)
	@ipxe/initramfs.sh $(NETBOOT)

image: setup ## a sealed Debian image, .cache/debian.raw, and systemd-boot for A/B images of it
	@mkdir -p .cache && $(SUDO) flock .cache/image.lock tests/e2e/image/build.sh $(IMAGE)
	@$(SUDO) flock .cache/image.lock tests/e2e/image/systemd-boot.sh .cache/systemd-boot

demo: build netboot image ## three machines from power-on to phone-home, then one again by curl
	@$(SUDO) $(RACK) demo

lab: build netboot image ## the same rack, left running to play with
	@$(SUDO) $(RACK) lab

lab-down: ## remove the rack that `make lab` left
	@$(SUDO) $(RACK) lab-down

# After `setup`, also with -j: two apt-get would be in each other's way.
vagrant-setup: setup ## install what `make vagrant-test` needs; says what and why
	@command -v vagrant >/dev/null || { \
	  echo 'installing with apt: vagrant, vagrant-libvirt (the Vagrant lab)'; \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -q -y --no-install-recommends vagrant vagrant-libvirt; }

# What asks apt comes first, alone, also with -j.
vagrant-test: vagrant-setup ## one machine of the Vagrant lab, up, powered and removed
	@$(MAKE) --no-print-directory build netboot
	@$(SUDO) vagrant/ci.sh

deb: netboot ## a Debian package, in target/debian
	@cargo build --quiet --release -p anneal
	@packaging/deb.sh

test: test-workspace test-agent ## every test: unit, protocol, scenarios on virtual machines

# When the boot files cannot be made, the tests that need none still run.
test-workspace: build
	@$(MAKE) --no-print-directory --keep-going netboot image; made=$$?; \
	$(AS_ROOT) cargo test --no-fail-fast $(SIDE) && exit $$made

# Its own cargo run: the agent and the daemon must not share a TLS provider. What its virtual machines boot is made by
# whoever runs make, because the tests are root, who may have no cargo; when it cannot be made, the other tests still run.
test-agent: setup
	@ipxe/initramfs.sh $(NETBOOT); made=$$?; \
	$(NETBOOT_READY) $(AS_ROOT) cargo test --no-fail-fast -p anneal-agent && exit $$made

test-scenarios: build netboot image ## only the scenarios
	$(AS_ROOT) cargo test $(SIDE) --test scenarios

test-kubernetes: build ## join tokens against a real kube-apiserver, built by Go from its release; needs etcd-server
	@scripts/kube-apiserver.sh .cache/kube-apiserver
	ANNEAL_KUBE_APISERVER=$(CURDIR)/.cache/kube-apiserver $(AS_ROOT) cargo test $(SIDE) --test api -- --ignored a_real_api_server

# What coreos-installer is built with, and what takes minutes the first time.
test-coreos-installer: build netboot ## what coreos-installer leaves on a disk beside what anneal does (installs its headers, builds it)
	@dpkg -s libssl-dev liblzma-dev libzstd-dev >/dev/null 2>&1 || { \
	  echo 'installing with apt: libssl-dev, liblzma-dev, libzstd-dev (to build coreos-installer)'; \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -q -y --no-install-recommends libssl-dev liblzma-dev libzstd-dev; }
	program=$$(scripts/coreos-installer.sh) && \
	ANNEAL_COREOS_INSTALLER=$$program $(AS_ROOT) cargo test $(SIDE) --test scenarios -- --ignored coreos_installer

# BENCH='--part serve', --quick and the like; without, docs/performance.md is written.
BENCH ?=
bench: setup bench-setup image ## speed beside the peers, to docs/performance.md; BENCH='--quick' only tries it
	@cargo build --quiet --release $(SIDE) --bins
	@mkdir -p .cache/bench && install "$$(ipxe/agent.sh)" .cache/bench/anneal-agent
	@$(SUDO) target/release/bench $(BENCH)

bench-setup: ## install what `make bench` compares with; says what and why
	@scripts/bench-setup.sh

SEEDS ?= 0..50
power-cuts: setup netboot ## virtual machines that lose power while they are written, SEEDS=0..50 (`make test` tries three)
	ANNEAL_POWER_CUT_SEEDS=$(SEEDS) $(NETBOOT_READY) $(AS_ROOT) cargo test -p anneal-agent --test it -- --nocapture power

FUZZ_SECONDS ?= 60
fuzz: setup ## mutated input for each parser that faces the network, FUZZ_SECONDS each
	@for target in fuzz/src/bin/*.rs; do \
	  CARGO_TARGET_DIR=target/fuzz cargo run --quiet --manifest-path fuzz/Cargo.toml --bin "$$(basename "$$target" .rs)" -- $(FUZZ_SECONDS) || exit 1; \
	done

check: check-format check-lints check-deny ## formatting, lints, licences and sources of dependencies

check-format: setup
	cargo fmt --all --check

# All in one run: nothing of it is started, so daemon and agent may share features here.
check-lints: setup
	cargo clippy --quiet --workspace --all-targets -- -D warnings

check-deny: setup
	deny=$$(scripts/cargo-deny.sh) && "$$deny" check --hide-inclusion-graph licenses bans sources

advisories: setup ## known vulnerabilities in dependencies; fetches the RustSec database
	deny=$$(scripts/cargo-deny.sh) && "$$deny" check advisories
