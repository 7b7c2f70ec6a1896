#!/bin/bash
# Builds the node-agent's packages and tries them on a host: a guest whose process 1 is this
# machine's systemd. Prints `ok NAME` or `FAILED NAME` for each check.
#
#   tests/packages.sh [KERNEL [PART...]]
#
# Parts, each in a guest of its own: life lost live (without names: these), and contrast,
# which shows what becomes of a host without the shutdown unit, and takes minutes more.
# Settings: PROFILE (default: dev, since an optimised build takes many minutes, and what is
# tested here does not depend on it).
set -euo pipefail
cd "$(dirname "$0")/.."
kernel=${1:-6.1}
shift || true
parts=("$@")
((${#parts[@]} > 0)) || parts=(life lost live)
target=${CARGO_TARGET_DIR:-target}
bin=$target/debug
export PROFILE=${PROFILE:-dev}
# A shutdown takes 20 s in an emulated guest. systemd's own patience with what hangs is 90 s
# for each of several steps.
bound=90
failed=0

verdict() { # STATUS NAME
	if (($1 == 0)); then echo "ok packages, Linux $kernel: $2"; else
		echo "FAILED packages, Linux $kernel: $2"
		failed=1
	fi
}

build() { VERSION=$1 systemd/package/build.sh; }
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
next=$version.1
build "$version" && build "$next" || {
	verdict 1 "the packages are built"
	exit 1
}
verdict 0 "the packages are built"
if command -v lintian >/dev/null; then
	# Whoever hands the package on gives the address (DEBEMAIL).
	lintian --allow-root --fail-on error --suppress-tags \
		bogus-mail-host,bogus-mail-host-in-debian-changelog,root-in-contact \
		"$target/packages/rds-node-agent_${version}"_*.deb && status=0 || status=$?
	verdict "$status" "lintian finds no error in the .deb"
fi
deb=("$target/packages/rds-node-agent_${version}_"*.deb)
next_deb=("$target/packages/rds-node-agent_${next}_"*.deb)
rpm=("$target/packages/rds-node-agent-${version}-1."*.rpm)
next_rpm=("$target/packages/rds-node-agent-${next}-1."*.rpm)

scratch=$(mktemp -d "$(realpath "$target")/packages/test.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
guest() { "$bin/rds-vm" run --kernel "$kernel" --systemd "$@"; }

# Shuts a guest down and tells how many seconds that took, or nothing if it did not end.
shut_down() { # LIMIT [FLAG...]
	local limit=$1 began
	shift
	rm -rf "$scratch/results"
	guest --timeout $((limit + 120)) --until-shutdown --results "$scratch/results" \
		--scratch "$scratch/disk" -- "$bin/rds-scenario" poweroff --deb "${deb[0]}" "$@" >&2 || return
	began=$(stat -c %Y "$scratch/results/shutdown-began") || return
	echo $(($(date +%s) - began))
}
within() { # LIMIT SECONDS
	[[ -n $2 ]] && (($2 <= $1))
}
# What the appliance's file of a volume holds of what was written last.
arrived() { # VOLUME
	local file
	file=$(<"$scratch/results/$1") || return
	# The appliance's own disk was not unmounted: its journal has to be replayed first.
	e2fsck -fy "$scratch/disk" >"$scratch/fsck" 2>&1 || (($? < 4)) || return
	rm -f "$scratch/image" "$scratch/late"
	debugfs -R "dump ${file#/scratch} $scratch/image" "$scratch/disk" >/dev/null 2>&1
	dumpe2fs -h "$scratch/image" 2>/dev/null | grep -E '^Filesystem (state|features)' >"$scratch/state"
	e2fsck -fy "$scratch/image" >"$scratch/fsck" 2>&1 || (($? < 4)) || return
	debugfs -R "dump /late $scratch/late" "$scratch/image" >/dev/null 2>&1
	cmp "$scratch/late" "$scratch/results/late" >&2
}
unmounted() { grep -q 'state: *clean' "$scratch/state" && ! grep -q needs_recovery "$scratch/state"; }

part_life() {
	guest --timeout 600 -- "$bin/rds-scenario" packages --deb "${deb[0]}" \
		--next-deb "${next_deb[0]}" --rpm "${rpm[0]}" --next-rpm "${next_rpm[0]}" || failed=1
}

part_lost() {
	seconds=$(shut_down $bound --volumes lost) || true
	echo "shutdown with a lost volume: ${seconds:-no end in} s"
	within $bound "$seconds" && status=0 || status=1
	verdict $status "a host with a lost volume and a waiting process shuts down within $bound s"
}

part_live() {
	seconds=$(shut_down $bound --volumes live) || true
	echo "shutdown with live volumes: ${seconds:-no end in} s"
	within $bound "$seconds" && status=0 || status=1
	verdict $status "a host with live volumes shuts down within $bound s"
	arrived ended && status=0 || status=1
	verdict $status "what was written just before the shutdown is on the appliance"
	unmounted && status=0 || status=1
	verdict $status "its file system was unmounted while there was a network"
	arrived living && status=0 || status=1
	verdict $status "so is what a container wrote that outlives the shutdown of services"
}

part_contrast() {
	seconds=$(shut_down $((bound * 2)) --volumes lost --without-unit) || true
	echo "without the unit, shutdown with a lost volume: ${seconds:-no end in} s"
	within $bound "$seconds" && status=1 || status=0
	verdict $status "without the unit, a host with a lost volume does not shut down within $bound s"
	seconds=$(shut_down $((bound * 2)) --volumes live --without-unit) || true
	echo "without the unit, shutdown with live volumes: ${seconds:-no end in} s"
	arrived ended && status=1 || status=0
	verdict $status "without the unit, what was written just before the shutdown is lost"
}

for part in "${parts[@]}"; do "part_$part"; done
exit $failed
