#!/bin/bash
# What `make guest` runs in one boot of a guest: unit tests that mount and format loop
# devices, then the scenarios. Prints `ok NAME` or `FAILED NAME` for each.
set -euo pipefail
[[ ${RDS_VM:-} == 1 ]] || { echo "in-guest.sh: for a guest of rds-vm only" >&2; exit 2; }
bin=$1
status=0

# One test makes / shared, as a systemd host has it: in a mount namespace of its own.
unshare -m --propagation private "$bin/rds-node-agent-kernel-tests" node::tests --test-threads=1 |
	sed -uE 's/^test (\S+) \.\.\. ok$/ok \1/; s/^test (\S+) \.\.\. FAILED$/FAILED \1/' || status=1
"$bin/rds-scenario" ci || status=1
"$bin/rds-scenario" state-disk || status=1
"$bin/rds-scenario" matrix --ci || status=1
exit "$status"
