#!/bin/bash
# Builds etcd and kube-apiserver (server/main.go) into target/tools/kube, from the Go module
# proxy. Does nothing when they are there.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What Kubernetes 1.36 asks for.
go_needed=1.26
tools=$PWD/target/tools
stamp=$tools/kube/version
version=$(cat tests/kube/server/go.mod tests/kube/server/*.go tests/kube/build.sh | sha256sum)
if [[ -x $tools/kube/rds-kube && $(cat "$stamp" 2>/dev/null) == "$version" ]]; then exit 0; fi
mkdir -p "$tools/kube"
source tests/go.sh

cd tests/kube/server
GOTOOLCHAIN=local GOFLAGS=-mod=readonly "$go" build -trimpath -ldflags="-s -w \
		-X k8s.io/component-base/version.gitVersion=v1.36.3 \
		-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36" \
	-o "$tools/kube/rds-kube" .
echo "$version" >"$stamp"
