#!/bin/bash
# A scenario in a guest, with the agent as in its pod: from its image, with the directories of the
# host that its DaemonSet names, and in a mount namespace of its own. What is not there is kubelet and
# a container runtime. (in-guest.sh is what a runtime would do.)
#   tests/pod/run.sh KERNEL SCENARIO [ARGUMENT...]
# From what `cargo build --workspace` left in target/debug.
set -euo pipefail
cd "$(dirname "$0")/../.."
kernel=$1
shift
target=${CARGO_TARGET_DIR:-target}
deploy/images/build.sh --dev rds-node-agent
rm -rf "$target/pod"
mkdir -p "$target/pod/root"
image=$target/images-dev/rds-node-agent.tar
# The one layer is by far the largest of its blobs.
layer=$(tar tvf "$image" | sort -n -k 3 | awk 'END { print $NF }')
tar xOf "$image" "$layer" | tar xz -C "$target/pod/root"
exec "$target/debug/rds-vm" run --kernel "$kernel" --timeout "${DEMO_TIMEOUT:-900}" -- \
	tests/pod/in-guest.sh "$target/debug" "$target/pod/root" "$@"
