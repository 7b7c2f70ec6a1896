#!/bin/bash
# Builds what a node of `make e2e` runs in its guest, from the Go module proxy, into
# target/tools/node: kubelet, and containerd, whose runc and CNI plugins are Debian's. Does
# nothing when they are there. Some 8 minutes of processor time.
set -euo pipefail
cd "$(dirname "$0")/../.."

go_needed=1.26
tools=$PWD/target/tools
out=$tools/node
version=$(cat tests/kube/node/*/* tests/kube/node.sh | sha256sum)
if [[ $(cat "$out/version" 2>/dev/null) == "$version" ]]; then exit 0; fi
mkdir -p "$out"
source tests/go.sh

build() { # FOLDER FLAGS PACKAGE...
	local folder=tests/kube/node/$1 flags=$2
	shift 2
	(cd "$folder" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0 "$go" build -trimpath -ldflags="-s -w $flags" -o "$out/" "$@")
}
kubernetes=$(sed -n 's,.*k8s.io/kubernetes \(v[0-9.]*\)$,\1,p' tests/kube/node/kubelet/go.mod)
minor=${kubernetes#v1.}
version_flags="-X k8s.io/component-base/version.gitVersion=$kubernetes \
	-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
build kubelet "$version_flags" .
mv "$out/kube-kubelet" "$out/kubelet"
containerd=github.com/containerd/containerd/v2
build containerd "" $containerd/cmd/containerd $containerd/cmd/containerd-shim-runc-v2 $containerd/cmd/ctr
echo "$version" >"$out/version"
