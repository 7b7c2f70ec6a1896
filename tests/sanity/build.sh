#!/bin/bash
# Builds csi-sanity, the Container Storage Interface's own test suite, into target/tools.
# Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

# v5.4.0 tests CSI 1.12, the version of proto/proto/csi.proto.
version=v5.4.0
# What its go.mod asks for.
go_needed=1.23

tools=$PWD/target/tools
stamp=$tools/csi-sanity.version
if [[ -x $tools/csi-sanity && $(cat "$stamp" 2>/dev/null) == "$version" ]]; then exit 0; fi
mkdir -p "$tools"

source tests/go.sh
# GOTOOLCHAIN: go.mod would like a certain patch release, and any of the series will do.
GOTOOLCHAIN=local GOBIN=$tools "$go" install \
	"github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$version"
echo "$version" >"$stamp"
