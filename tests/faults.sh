#!/bin/bash
# The whole fault matrix: one boot for each kernel, with and without native NVMe multipath,
# and a page of what was seen. Exits non-zero if anything failed; its last line is
# `N passed, N failed`. Each boot's whole output is in target/test-logs/faults-*.log.
#
# Settings, from the environment:
#   KERNELS        kernels to boot (default: 6.1 6.12)
#   MULTIPATH      values of nvme_core.multipath (default: Y N)
#   GUESTS         guests at a time (default: 2 if there are two processors)
#   GUEST_TIMEOUT  seconds that one boot may take (default: 3600)
#   FAULTS         only these faults, by name, with commas (default: all)
#   PAGE           the page to write (default: docs/fault-matrix.md)
#   BIN            where the binaries are (default: target/debug)
set -euo pipefail
cd "$(dirname "$0")/.."

kernels=${KERNELS:-6.1 6.12}
multipath=${MULTIPATH:-Y N}
guests=${GUESTS:-$(($(nproc) >= 2 ? 2 : 1))}
limit=${GUEST_TIMEOUT:-3600}
page=${PAGE:-docs/fault-matrix.md}
bin=${BIN:-${CARGO_TARGET_DIR:-target}/debug}
logs=target/test-logs
mkdir -p "$logs"

only=()
[[ -z ${FAULTS:-} ]] || only=(--only "$FAULTS")

play() { # KERNEL MULTIPATH LOG RESULTS
	local status=0
	# The boot, and fetching a kernel the first time, are not in rds-vm's own limit.
	timeout -k 30 $((limit + 600)) "$bin/rds-vm" run --kernel "$1" --multipath "$2" \
		--timeout "$limit" --results "$4" -- "$bin/rds-scenario" matrix "${only[@]}" \
		</dev/null >"$3" 2>&1 || status=$?
	tr -d '\r' <"$3" | grep -E '^(ok|FAILED) ' || true
	# A guest that died, or was ended, says nothing of what it had still to do.
	if ((status != 0)) && ! grep -q '^FAILED ' "$3"; then
		echo "FAILED matrix, Linux $1, multipath $2: the run ended with $status: see $3" | tee -a "$3"
	fi
}

played=() results=()
for kernel in $kernels; do
	for value in $multipath; do
		while (($(jobs -rp | wc -l) >= guests)); do wait -n || true; done
		name=faults-$kernel-$value
		rm -rf "$logs/$name"
		mkdir -p "$logs/$name"
		echo "== Linux $kernel, nvme_core.multipath=$value"
		play "$kernel" "$value" "$logs/$name.log" "$logs/$name" &
		played+=("$logs/$name.log") results+=("$logs/$name/matrix.json")
	done
done
wait

passed=$(cat "${played[@]}" | grep -c '^ok ' || true)
failed=$(cat "${played[@]}" | grep -c '^FAILED ' || true)
written=()
for rows in "${results[@]}"; do
	[[ ! -s $rows ]] || written+=("$rows")
done
if ((${#written[@]} > 0)); then
	"$bin/rds-scenario" matrix-table --date "$(date -u +%F)" "${written[@]}" >"$page.new"
	mv "$page.new" "$page"
	echo "$page is written"
fi
if ((passed == 0)); then failed=$((failed + 1)); fi
echo "$passed passed, $failed failed"
((failed == 0))
