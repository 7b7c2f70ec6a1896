#!/bin/bash
# One test program of cargo's, as cargo would run it: in its package's folder. Its output goes
# to a file in LOGS, so that programs may run side by side.
#
#   tests/unit.sh LOGS FOLDER KIND PROGRAM
set -uo pipefail
logs=$1 folder=$2 program=$4
log=$(mktemp "$logs/XXXXXX.log")
{
	echo "Running $program"
	status=0
	# What needs root and loop devices runs in a guest.
	(cd "$folder" && timeout -k 10 600 "$program" --skip node::tests:: --skip kernel_tests::) || status=$?
	((status == 0)) || echo "ended with $status: $program"
} >"$log" 2>&1 </dev/null
exit "$status"
