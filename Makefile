# `make` alone lists what there is to do.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Folders
PEERS ?= $(CURDIR)/target/peers
RELEASE := target/release
SHIM_TARGET := target/shim
PREFIX ?= /usr/local

# How long a fuzz target, or the soak, runs
SECONDS ?= 60

# The supervisor is linked statically and without relocations: it starts faster and shares more.
SHIM_ENV := RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=$(shell gcc -print-multiarch 2>/dev/null | sed 's|^|/usr/lib/|')
SHIM := $(SHIM_TARGET)/x86_64-unknown-linux-gnu/shim/containerd-shim-runc-v2

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what building needs (Debian packages, cargo)
	@scripts/setup build

.PHONY: build
build: setup ## the programs, optimised, in target/release
	cargo build --release -p containerd -p ctr -p corten-cni
	$(SHIM_ENV) cargo build --profile shim -p containerd-shim-runc-v2 --target x86_64-unknown-linux-gnu --target-dir $(SHIM_TARGET)
	install -m 0755 $(SHIM) $(RELEASE)/containerd-shim-runc-v2
	ln -sf containerd-shim-runc-v2 $(RELEASE)/runc

.PHONY: demo
demo: build ## pull and run real images from a real registry, in a private folder
	@scripts/setup demo
	@scripts/peers $(PEERS) tools
	cargo build --release -p corten-tests --bin make-image
	@PEERS=$(PEERS) scripts/demo $(RELEASE)

.PHONY: test
test: ## everything that can be tested here; ONLY=pattern for some of it
	@scripts/setup test
	@scripts/peers $(PEERS)
	cargo build --workspace --bins --tests
	PEERS=$(PEERS) cargo nextest run --workspace --no-fail-fast $(if $(ONLY),-E 'test($(ONLY))')
	$(if $(ONLY),,@scripts/fuzz $(SECONDS))

.PHONY: soak
soak: ## containers at random while everything is killed at random, for SECONDS=60: nothing may remain
	@scripts/setup test
	@scripts/peers $(PEERS)
	cargo build -p containerd -p ctr -p containerd-shim-runc-v2
	PEERS=$(PEERS) SOAK_SECONDS=$(SECONDS) cargo test -p corten-tests --test soak -- --include-ignored --nocapture

.PHONY: test-differential
test-differential: ## the tables of requests and answers, on our daemon and on Debian's containerd 2.1
	@scripts/setup test
	@scripts/peers $(PEERS) containerd-2.1 oci
	cargo build -p containerd -p ctr
	PEERS=$(PEERS) cargo nextest run -p corten-tests --test conformance --no-fail-fast

# The suites that the host's cgroups, kernel and programs matter to.
GUEST_TESTS := --test oci --test shim
GUEST_ARGS := $(ONLY) --test-threads 1

.PHONY: test-guest
test-guest: ## the OCI runtime and the shim on another kernel with cgroups of v2 alone, in an emulated machine; ONLY=pattern
	@scripts/setup guest
	@scripts/peers $(PEERS) containerd-2.1 oci crun criu tools guest
	cargo build --workspace --bins
	cargo test --workspace --no-run $(GUEST_TESTS) 2>&1 | tee target/guest.txt
	GUEST_ARGS="$(GUEST_ARGS)" scripts/guest $(PEERS) target/debug $$(sed -n 's|.*(\(target/debug/deps/.*\))|\1|p' target/guest.txt)

.PHONY: test-docker
test-docker: ## Docker Engine 20.10 and 26.1 on our daemon; with PEERS=DIR on Debian's too, and the table for docs/docker.md
	@scripts/setup test
	@scripts/peers $(PEERS)
	cargo build --workspace --bins --tests
	@rm -f target/docker.tsv
	DOCKER_TABLE=$(CURDIR)/target/docker.tsv PEERS=$(PEERS) cargo nextest run --workspace -E 'binary(docker)' --no-fail-fast
ifneq ($(origin PEERS),file)
	# What does not hold there is told in the table.
	-DOCKER_REFERENCE=1 DOCKER_TABLE=$(CURDIR)/target/docker.tsv PEERS=$(PEERS) \
		cargo nextest run --workspace -E 'binary(docker)' --no-fail-fast
	scripts/docker-table target/docker.tsv docs/docker.md
endif

.PHONY: fuzz
fuzz: ## throw garbage at everything that reads bytes from outside, SECONDS=60 for each; TARGETS=names for some
	@scripts/setup test
	@scripts/fuzz $(SECONDS) $(TARGETS)

.PHONY: lint
lint: ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: bench
bench: build ## side by side with Debian's containerd 2.1 and runc, as ratios; ONLY=start,idle,… for some of it
	@scripts/peers $(PEERS)
	@scripts/setup demo
	cargo run --release -p corten-bench -- --peers $(PEERS) --programs $(RELEASE) --plots docs $(if $(ONLY),--only $(ONLY))

.PHONY: peers
peers: ## unpack the real programs that the tests compare with
	@scripts/peers $(PEERS)

.PHONY: docs
docs: ## the documentation that is made from the definitions of the commands
	cargo run -q -p ctr -- manual >docs/ctr.md

.PHONY: install
install: build place ## place programs, manual, completions and the systemd unit under PREFIX (/usr/local)

# What was built before, from RELEASE.
.PHONY: place
place:
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(RELEASE)/containerd $(RELEASE)/ctr $(RELEASE)/containerd-shim-runc-v2 $(RELEASE)/corten-cni $(DESTDIR)$(PREFIX)/bin
	made=$$(mktemp -d) && trap 'rm -r "$$made"' EXIT && $(RELEASE)/ctr manual --folder "$$made" && \
	install -d $(DESTDIR)$(PREFIX)/share/man/man8 && \
	install -m 0644 "$$made"/*.8 $(DESTDIR)$(PREFIX)/share/man/man8 && \
	install -Dm 0644 "$$made/ctr.bash" $(DESTDIR)$(PREFIX)/share/bash-completion/completions/ctr && \
	install -Dm 0644 "$$made/_ctr" $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_ctr && \
	install -Dm 0644 "$$made/ctr.fish" $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/ctr.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|PREFIX|$(PREFIX)|; /^# /d' packaging/containerd.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/containerd.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/containerd.service
