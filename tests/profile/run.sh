#!/bin/bash
# Where the shield's cost comes from: counts the instructions that a guest executes for a
# fixed number of requests on the bare namespace and on the shield, and says by function
# which the difference is made of. Prints a table; the whole list goes to target/profile.
#
#   tests/profile/run.sh KERNEL
set -euo pipefail
cd "$(dirname "$0")/../.."
kernel=${1:-6.1}
bin=${CARGO_TARGET_DIR:-target}/debug
out=$PWD/target/profile
mkdir -p "$out"
cc -O2 -Wall -Wextra -shared -fPIC -fvisibility=hidden -o "$out/count.so" tests/profile/plugin.c
cc -O1 -o "$out/mark" tests/profile/mark.c
"$bin/rds-vm" run --kernel "$kernel" --timeout 900 --plugin "$out/count.so,out=$out/counts" \
	--results "$out" --env RDS_MARK="$out/mark" -- \
	bash -c "'$bin/rds-scenario' bench --only count && cat /proc/kallsyms >/results/symbols" |
	tee "$out/log"
python3 tests/profile/table.py "$out"
