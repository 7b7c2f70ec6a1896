#!/bin/bash
# What `make guest` runs in a guest: in one boot unit tests that mount and format loop devices,
# and the stories of a volume's life (part `life`); in another the faults of sessions and the
# deaths of the agent (part `faults`), which takes longer. Prints `ok NAME` or `FAILED NAME` for each.
#
#   tests/in-guest.sh BIN life|faults
set -euo pipefail
[[ ${RDS_VM:-} == 1 ]] || { echo "in-guest.sh: for a guest of rds-vm only" >&2; exit 2; }
bin=$1
status=0

case $2 in
life)
	# One test makes / shared, as a systemd host has it: in a mount namespace of its own.
	unshare -m --propagation private "$bin/rds-node-agent-kernel-tests" node::tests kernel_tests --test-threads=1 |
		sed -uE 's/^test (\S+) \.\.\. ok$/ok \1/; s/^test (\S+) \.\.\. FAILED$/FAILED \1/' || status=1
	"$bin/rds-scenario" ci || status=1
	"$bin/rds-scenario" doctor || status=1
	"$bin/rds-scenario" hostile || status=1
	"$bin/rds-scenario" state-disk || status=1
	# Another seed each time; the log has the command that repeats it.
	"$bin/rds-scenario" chaos --steps 12 || status=1
	;;
faults)
	"$bin/rds-scenario" matrix --ci || status=1
	"$bin/rds-scenario" crash || status=1
	;;
*)
	echo "in-guest.sh: no part '$2'" >&2
	exit 2
	;;
esac
exit "$status"
