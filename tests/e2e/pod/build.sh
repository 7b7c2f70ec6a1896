#!/bin/bash
# The image of the pods: tests/e2e/pod/build.sh OUT.tar
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=$1
mkdir -p "$(dirname "$out")"
program=$(mktemp -d)
trap 'rm -r "$program"' EXIT
rustc --edition 2024 -O -C target-feature=+crt-static --target "$(rustc -vV | sed -n 's/^host: //p')" \
	-o "$program/pod" tests/e2e/pod/main.rs
deploy/images/oci.py "$program/pod" --version 1 --arch "$(dpkg --print-architecture)" --epoch 0 --out "$out"
