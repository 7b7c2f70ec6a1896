#!/bin/bash
# Builds what is missing and runs the scenarios; an argument chooses those whose names contain it.
set -euo pipefail
cd "$(dirname "$0")/../.."
# What a node has from its distribution.
tests/vm/setup.sh runc containernetworking-plugins
tests/kube/build.sh
tests/kube/crds.sh
tests/kube/sidecars.sh
tests/kube/node.sh
tests/chart/build.sh
cargo build -q --workspace --bins
tests/e2e/pod/build.sh target/e2e/pod.tar
deploy/images/build.sh --dev
exec "${CARGO_TARGET_DIR:-target}/debug/rds-e2e" "$@"
