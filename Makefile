# `make help` tells all. The work is done by cargo and by the scripts in tests/.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Kernels that guests boot, from Debian: 6.1 is Debian 12's, 6.12 its backports'. They differ
# where it matters most (docs/design.md, section 2).
KERNELS ?= 6.1
DEMO_KERNELS ?= 6.1 6.12
DEMO_TIMEOUT ?= 900
FAULT_KERNELS ?= 6.1 6.12
export KERNELS

BIN := $(or $(CARGO_TARGET_DIR),target)/debug
# What users get is what is measured.
BENCH_BIN := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  KERNELS="6.1 6.12" chooses what `make test` and `make guest` boot, DEMO_KERNELS'
	@echo '  what `make demo` does, FAULT_KERNELS what `make test-faults` does.'

.PHONY: setup
setup: ## Install what building and testing need (Debian, Ubuntu)
	tests/vm/setup.sh

.PHONY: build
build: setup ## Build everything, tests included, in the dev profile
	cargo build --workspace --all-targets

.PHONY: test
test: setup ## All tests: formatting, lints, licences, unit, csi-sanity, scenarios in a guest
	tests/run.sh

.PHONY: unit
unit: ## cargo test, counted
	tests/run.sh unit

.PHONY: sanity
sanity: ## The CSI's own test suite against the real binaries, in a guest
	tests/run.sh sanity

.PHONY: guest
guest: ## The fault scenarios, in a guest
	tests/run.sh guest

.PHONY: test-faults
test-faults: setup build ## Every fault on every kernel, with and without native multipath; writes docs/fault-matrix.md
	KERNELS="$(FAULT_KERNELS)" BIN=$(BIN) tests/faults.sh

.PHONY: packages
packages: setup ## A .deb and an .rpm of the node-agent, in target/packages (PROFILE=dev: from the dev build)
	systemd/package/build.sh

.PHONY: images
images: setup ## OCI images of controller, shim and agent, in target/images (ARCH=amd64|arm64); optimised: takes many minutes the first time
	deploy/images/build.sh

.PHONY: manifests
manifests: ## deploy/manifests, from the chart
	tests/chart/build.sh
	deploy/render.py target/tools/helm

.PHONY: demo
demo: setup build ## A write that survives whatever happens to its session, on each kernel
	@set -e; for kernel in $(DEMO_KERNELS); do \
		echo "== Linux $$kernel"; \
		$(BIN)/rds-vm run --kernel $$kernel --timeout $(DEMO_TIMEOUT) -- $(BIN)/rds-scenario demo; \
	done

.PHONY: demo-pod
demo-pod: setup build ## The same with the agent as in its pod: from its image, in a mount namespace of its own; on the first of KERNELS
	tests/pod/run.sh $(firstword $(KERNELS)) demo

.PHONY: bench-build
bench-build: setup
	cargo build --release --workspace --bins

.PHONY: bench
bench: bench-build ## Recovery time, cost of the shield and of the shim, as ratios, in a guest
	$(BENCH_BIN)/rds-vm run --kernel $(firstword $(KERNELS)) --timeout $(DEMO_TIMEOUT) -- $(BENCH_BIN)/rds-scenario bench

.PHONY: bench-shield
bench-shield: setup build ## What the shield costs, in instructions a request, function by function
	tests/profile/run.sh $(firstword $(KERNELS))

# Static, as in the image; by glibc, since the musl target is not everywhere.
SHIM_TARGET := x86_64-unknown-linux-gnu
SHIM_STATIC := $(or $(CARGO_TARGET_DIR),target)/static
.PHONY: bench-shim
bench-shim: setup ## The shim's cost: milliseconds a call, memory, size of the static binary; on this machine itself
	cargo build --workspace
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p rds-csi-shim \
		--target $(SHIM_TARGET) --target-dir $(SHIM_STATIC)
	$(BIN)/rds-scenario bench-shim --shim $(SHIM_STATIC)/$(SHIM_TARGET)/release/rds-csi-shim

# In a target directory of its own: with one level of optimisation, since a release build of all
# takes many minutes and figures of a dev build would be the compiler's.
MEASURED := $(or $(CARGO_TARGET_DIR),target)/measured
.PHONY: bench-controller
bench-controller: export CARGO_PROFILE_DEV_OPT_LEVEL := 1
bench-controller: setup ## The controller's cost over REST and SSH: commands and milliseconds a call, a page of 10,000 volumes, memory; on this machine itself
	cargo build --target-dir $(MEASURED) -p rds-sim -p rds-csi-controller --bins --benches
	cargo bench --profile dev --target-dir $(MEASURED) -p rds-sim -p rds-csi-controller --bench calls_bench

.PHONY: bench-busy
bench-busy: setup ## How long the search for a volume's users takes among 2,000 processes; on this machine itself
	cargo run -p rds-node-agent --example busy-scan

.PHONY: bench-fleet
bench-fleet: bench-build ## 32 volumes lost at once: recovery, connections, the agent's memory and idle CPU
	$(BENCH_BIN)/rds-vm run --kernel $(firstword $(KERNELS)) --timeout $(DEMO_TIMEOUT) \
		--env RDS_HOST_SPEED=$$($(BENCH_BIN)/rds-scenario speed) --env RDS_CSI_LOG=info -- $(BENCH_BIN)/rds-scenario fleet

.PHONY: bench-recovery
bench-recovery: bench-build ## Seconds from "the target answers" to the first write, against the kernel alone
	$(BENCH_BIN)/rds-vm run --kernel $(firstword $(KERNELS)) --timeout $(DEMO_TIMEOUT) -- $(BENCH_BIN)/rds-scenario bench --only recovery

.PHONY: crash
crash: setup ## The agent is killed at each named point of a volume's life, in a guest
	tests/run.sh crash

.PHONY: two-nodes
two-nodes: setup build ## Two nodes in two guests: one cut off and shut out, a writer that moves, deaths; on each of KERNELS
	@set -e; for kernel in $(KERNELS); do \
		$(BIN)/rds-vm run --kernel $$kernel --timeout $(DEMO_TIMEOUT) --peer '$(BIN)/rds-scenario peer' \
			-- $(BIN)/rds-scenario two-nodes; \
	done

.PHONY: e2e
e2e: setup ## The driver in real Kubernetes, with kubelet and containerd in two guests (ONLY=TEXT: scenarios with that in their names)
	tests/e2e/run.sh $(ONLY)

.PHONY: selinux
selinux: setup build ## Volumes with an SELinux label, in a guest that has SELinux (needs secilc; not in `make test`)
	tests/selinux/run.sh $(firstword $(KERNELS))

.PHONY: chaos
chaos: setup build ## Random CSI calls against a model (SEED=N repeats them; a third as many in `make test`), and 64 lives at once (not there)
	$(BIN)/rds-vm run --kernel $(firstword $(KERNELS)) --timeout $(DEMO_TIMEOUT) -- $(BIN)/rds-scenario chaos $(if $(SEED),--seed $(SEED))
	$(BIN)/rds-vm run --kernel $(firstword $(KERNELS)) --timeout $(DEMO_TIMEOUT) \
		--env RDS_HOST_SPEED=$$($(BIN)/rds-scenario speed) -- $(BIN)/rds-scenario churn

.PHONY: fmt
fmt: ## Format the source
	cargo fmt --all

.PHONY: clippy
clippy: ## Lint
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: deny
deny: ## Check licences, banned crates and sources of all dependencies
	tests/deny.sh
