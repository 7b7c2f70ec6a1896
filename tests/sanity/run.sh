#!/bin/bash
# Runs csi-sanity against the real binaries: the controller with rds-sim behind it, the shim
# with the node-agent behind it.
#
#   tests/sanity/run.sh [all|controller] [--transport rest|ssh] [--sim FLAG]... [FLAG FOR CSI-SANITY...]
#
# `--sim` gives rds-sim a further flag, such as `--sim --full-pool=silent`; switches.sh knows
# which to combine.
# `all` needs a kernel with NVMe/TCP, host and target: a guest of rds-vm. `controller` runs
# anywhere; specs that stage a volume are left out. Logs of the four programs go to
# $RDS_VM_RESULTS or target/test-logs/sanity.
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-all}
[[ $# == 0 ]] || shift
usage() {
	echo "usage: $0 [all|controller] [--transport rest|ssh] [--sim FLAG]... [FLAG...]" >&2
	exit 2
}
case $mode in all | controller) ;; *) usage ;; esac
transport=rest switches=()
while (($# > 0)); do
	case $1 in
	--transport)
		case ${2:-} in rest | ssh) transport=$2 ;; *) usage ;; esac
		shift 2
		;;
	--sim)
		[[ -n ${2:-} ]] || usage
		switches+=("$2")
		shift 2
		;;
	*) break ;;
	esac
done

bin=${CARGO_TARGET_DIR:-target}/debug
logs=${RDS_VM_RESULTS:-target/test-logs/sanity}
mkdir -p "$logs"
# Images of volumes go to a disk: a guest's /tmp is its memory.
images=${TMPDIR:-/tmp}
[[ ${RDS_VM:-} != 1 ]] || images=/scratch
work=$(mktemp -d)
state=$(mktemp -d "$images/rds-sanity.XXXXXX")
pids=()
cleanup() {
	# The newest first: nobody loses the one behind it. Ids of our own children only.
	local i
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2>/dev/null || true; done
	wait || true
	rm -rf "$work" "$state" 2>/dev/null || true
}
trap cleanup EXIT

start() {
	local name=$1
	shift
	# Before the fork: the log of an earlier run says `ready`, too.
	: >"$logs/$name.log"
	"$@" >>"$logs/$name.log" 2>&1 &
	pids+=($!)
}
# Waits for a condition; emulated guests are slow.
await() {
	local what=$1 i
	shift
	for ((i = 0; i < 600; i++)); do
		if "$@" 2>/dev/null; then return; fi
		for pid in "${pids[@]}"; do
			kill -0 "$pid" 2>/dev/null || { i=600; break; }
		done
		sleep 0.1
	done
	echo "sanity: no $what; the ends of the logs:" >&2
	tail -n 20 "$logs"/*.log >&2
	exit 1
}

rest=18443 ssh=18022 nvme=4420
sim=(--state-dir "$state/sim" --rest-addr "127.0.0.1:$rest" --ssh-addr "127.0.0.1:$ssh"
	--portal "127.0.0.1:$nvme" --dir /raid10/volumes "${switches[@]}")
[[ " ${switches[*]}" == *" --pool="* ]] || sim+=(--pool=raid10:64G)
[[ " ${switches[*]}" == *" --allocate="* ]] || sim+=(--allocate=sparse)
[[ $mode == all ]] || sim+=(--no-nvmet)
mkdir -p "$state/sim" "$work/credentials"
start rds-sim "$bin/rds-sim" "${sim[@]}"
await "ready rds-sim" grep -q '^ready' "$logs/rds-sim.log"

printf admin >"$work/credentials/username"
cp "$state/sim/password" "$work/credentials/password"
cp "$state/sim/cert.pem" "$work/credentials/ca.crt"
cp "$state/sim/ssh_host_key.pub" "$work/credentials/ssh-host-key"
url=https://127.0.0.1:$rest
[[ $transport == rest ]] || url=ssh://admin@127.0.0.1:$ssh
start controller "$bin/rds-csi-controller" --endpoint "unix://$work/controller.sock" \
	--rds-url "$url" --rds-credentials "$work/credentials" \
	--volume-path /raid10/volumes --no-kubernetes --nodes sanity-node
start node-agent "$bin/rds-node-agent" serve --socket "$work/agent.sock" --state-dir "$state/agent"
start shim "$bin/rds-csi-shim" --endpoint "unix://$work/csi.sock" --node-name sanity-node \
	--agent-socket "$work/agent.sock" --no-registration --no-kubernetes
await "controller" test -S "$work/controller.sock"
await "node-agent" test -S "$work/agent.sock"
await "shim" test -S "$work/csi.sock"

cat >"$work/parameters.yaml" <<EOF
nvmeAddress: 127.0.0.1
nvmePort: "$nvme"
EOF
flags=(
	--csi.endpoint "unix://$work/csi.sock"
	--csi.controllerendpoint "unix://$work/controller.sock"
	--csi.mountdir "$work/mount" --csi.stagingdir "$work/staging"
	--csi.testvolumesize $((64 << 20)) --csi.testvolumeexpandsize $((96 << 20))
	--csi.testvolumeparameters "$work/parameters.yaml"
	--ginkgo.no-color
)
# Without the kernel's NVMe: nothing that stages a volume.
[[ $mode == all ]] || flags+=(--ginkgo.skip 'Node Service')

run() {
	target/tools/csi-sanity "${flags[@]}" --ginkgo.json-report "$work/report.json" "$@" 2>&1 |
		tee "$work/output"
}
status=0
run "$@" || status=$?
# Its first connection may be up before it waits for that to change (csi-test v5.4.0,
# utils/grpcutil.go, Connect), on a busy machine: then it waits for a minute, and fails.
if ((status != 0)) && grep -q 'Connection timed out' "$work/output"; then
	echo "csi-sanity missed its own connection; once more"
	status=0
	run "$@" || status=$?
fi
# Who chooses specs by hand leaves others out for that reason.
[[ $# != 0 ]] || python3 tests/sanity/skips.py "$work/report.json" "$mode" || status=1
exit "$status"
