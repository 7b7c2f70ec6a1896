#!/bin/bash
# Puts the CustomResourceDefinitions that the chart's optional objects need into
# target/tools/crds, from Go modules, whose checksums are here.
set -euo pipefail
cd "$(dirname "$0")/../.."
go_needed=1.26
tools=$PWD/target/tools
stamp=$tools/crds/version
version=$(sha256sum <tests/kube/crds.sh)
if [[ $(cat "$stamp" 2>/dev/null) == "$version" ]]; then exit 0; fi
mkdir -p "$tools/crds"
source tests/go.sh

fetch() { # MODULE@VERSION CHECKSUM FILE...
	local module=$1 checksum=$2 answer folder
	shift 2
	answer=$(cd / && GOTOOLCHAIN=local "$go" mod download -json "$module")
	[[ $answer == *"\"Sum\": \"$checksum\""* ]] || {
		echo "crds.sh: $module is not what it was: expected $checksum in $answer" >&2
		exit 1
	}
	folder=$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$answer")
	(cd "$folder" && install -m 644 "$@" "$tools/crds")
}
fetch github.com/kubernetes-csi/external-snapshotter/client/v8@v8.7.0 \
	h1:HVaSUeRRHPu49aSiL8eXOjS9Re9G6pM0NzdTGI7mM14= \
	config/crd/snapshot.storage.k8s.io_volumesnapshot{classes,contents,s}.yaml
fetch github.com/prometheus-operator/prometheus-operator@v0.85.0 \
	h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s= \
	example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml
echo "$version" >"$stamp"
