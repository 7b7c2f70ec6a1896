#!/bin/bash
# Builds what `make e2e` runs beside the API server, from the Go module proxy, into
# target/tools/sidecars: kube-controller-manager and kube-scheduler (controllers/, one program),
# and the CSI sidecars of the releases that the chart names (sidecars/go.mod). Does nothing when
# they are there. Some 10 minutes of processor time.
set -euo pipefail
cd "$(dirname "$0")/../.."

go_needed=1.26
tools=$PWD/target/tools
out=$tools/sidecars
version=$(cat tests/kube/controllers/* tests/kube/sidecars/* tests/kube/sidecars.sh | sha256sum)
if [[ $(cat "$out/version" 2>/dev/null) == "$version" ]]; then exit 0; fi
mkdir -p "$out"
source tests/go.sh

build() { # FOLDER FLAGS PACKAGE...
	local folder=$1 flags=$2
	shift 2
	(cd "$folder" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly "$go" build -trimpath -ldflags="-s -w $flags" -o "$out/" "$@")
}
kubernetes=$(sed -n 's,.*k8s.io/kubernetes \(v[0-9.]*\)$,\1,p' tests/kube/controllers/go.mod)
build tests/kube/controllers "-X k8s.io/component-base/version.gitVersion=$kubernetes" .
mv "$out/kube-controllers" "$out/rds-kube-controllers"
csi=github.com/kubernetes-csi
build tests/kube/sidecars "" \
	$csi/external-provisioner/v6/cmd/csi-provisioner \
	$csi/external-attacher/v4/cmd/csi-attacher \
	$csi/external-resizer/v2/cmd/csi-resizer \
	$csi/external-snapshotter/v8/cmd/csi-snapshotter \
	$csi/external-snapshotter/v8/cmd/snapshot-controller
echo "$version" >"$out/version"
