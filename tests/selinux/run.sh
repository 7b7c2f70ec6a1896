#!/bin/bash
# Volumes mounted with an SELinux label, in a guest that has SELinux on and a policy of its own:
# other guests have it off, for speed, and Debian has no policy that loads without its tools.
#
#   tests/selinux/run.sh [KERNEL]
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
tests=$target/debug/rds-node-agent-kernel-tests

if [[ ${RDS_VM:-} == 1 ]]; then
	mount -t selinuxfs selinuxfs /sys/fs/selinux
	# In one write, as the kernel wants it.
	dd if="$target/selinux/policy" of=/sys/fs/selinux/load bs=1M status=none
	exec unshare -m --propagation private "$tests" node::tests::selinux --ignored --test-threads=1
fi

command -v secilc >/dev/null || {
	echo "run.sh: secilc is missing; as root, run: apt-get install secilc" >&2
	exit 1
}
mkdir -p "$target/selinux"
secilc --policyvers=31 --output="$target/selinux/policy" --filecontext=/dev/null tests/selinux/policy.cil
built=$(cargo test --workspace --features rds-node-agent/kernel-tests --lib --no-run \
	--message-format=json | sed -n 's/.*"executable":"\([^"]*rds_node_agent-[^"]*\)".*/\1/p' | tail -n 1)
cp "$built" "$tests"
exec "$target/debug/rds-vm" run --kernel "${1:-6.1}" --timeout 300 \
	--kernel-argument security=selinux --kernel-argument selinux=1 --kernel-argument enforcing=0 \
	-- tests/selinux/run.sh
