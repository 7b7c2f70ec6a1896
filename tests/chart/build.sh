#!/bin/bash
# Builds Helm into target/tools/helm, from the Go module proxy; four minutes of processor time the
# first time. Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
go_needed=1.26
tools=$PWD/target/tools
stamp=$tools/helm.version
version=$(cat tests/chart/helm/go.mod tests/chart/build.sh | sha256sum)
if [[ -x $tools/helm && $(cat "$stamp" 2>/dev/null) == "$version" ]]; then exit 0; fi
mkdir -p "$tools"
source tests/go.sh
cd tests/chart/helm
GOTOOLCHAIN=local GOFLAGS=-mod=readonly "$go" build -trimpath -ldflags="-s -w" \
	-o "$tools/helm" helm.sh/helm/v3/cmd/helm
echo "$version" >"$stamp"
