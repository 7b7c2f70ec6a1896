#!/bin/bash
# Builds what is missing and runs the scenarios; an argument chooses those whose names contain it.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/kube/build.sh
tests/kube/crds.sh
tests/kube/sidecars.sh
tests/chart/build.sh
cargo build -q --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/debug/rds-e2e" "$@"
