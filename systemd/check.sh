#!/bin/bash
# Checks the files of this folder with systemd's and udev's own tools, as far as they are
# there. Prints `ok NAME` or `FAILED NAME` for each check.
set -euo pipefail
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

check() {
	local name=$1
	shift
	if "$@" >"$scratch/out" 2>&1; then
		echo "ok $name"
	else
		sed "s/^/    /" "$scratch/out"
		echo "FAILED $name"
		failed=1
	fi
}

# systemd-analyze wants each program to exist; the agent is not installed here.
verify_units() {
	local unit
	for unit in *.service; do
		sed 's#/usr/bin/rds-node-agent#/bin/true#' "$unit" >"$scratch/$unit"
	done
	# What it merely warns of (an unknown key, say) is a fault here too.
	systemd-analyze verify --man=no "$scratch"/*.service >"$scratch/verify" 2>&1 || {
		cat "$scratch/verify"
		return 1
	}
	if grep -F "$scratch" "$scratch/verify"; then return 1; fi
}

# A rule that is misspelt is ignored by udev with a warning, so it has to be looked for.
verify_rules() {
	if udevadm verify --help >/dev/null 2>&1; then
		udevadm verify --no-style udev/*.rules
		return
	fi
	# udev before 254: only the daemon's own parser reads rules, and tells when it is run on
	# some device. It looks in the directories for local rules, so that one is borrowed.
	local borrowed=/run/udev/rules.d/10-rds-csi-check.rules
	mkdir -p "${borrowed%/*}" || return
	# shellcheck disable=SC2064 # the path as it is now
	trap "rm -f '$borrowed'; rm -rf '$scratch'" EXIT
	cp udev/10-rds-csi.rules "$borrowed"
	udevadm test /sys/devices/virtual/mem/null >"$scratch/udev" 2>&1 || true
	rm -f "$borrowed"
	grep -q "rds-csi-check.rules" "$scratch/udev" || {
		echo "udevadm did not read the rules"
		return 1
	}
	if grep -F "$borrowed:" "$scratch/udev"; then return 1; fi
}

modules_are_plain_names() {
	! grep -vE '^(#.*|[a-z0-9_-]+)$' modules-load.d/*.conf
}

# An option that gives the service a mount namespace hides every mount from kubelet. One such
# line, added in good faith, passes every test that does not look from outside.
agent_keeps_the_hosts_mounts() {
	! grep -nE '^(Private(Mounts|Tmp|Devices)|Protect(System|Home|Kernel[A-Za-z]*|ControlGroups|Proc)|Read(Write|Only)Paths|InaccessiblePaths|Bind(ReadOnly)?Paths|(NoExec|Exec)Paths|(Mount|Extension)Images|LogNamespace|TemporaryFileSystem|Root(Directory|Image)|MountFlags|DynamicUser)=' rds-node-agent.service
}

if command -v systemd-analyze >/dev/null; then check "systemd units" verify_units; fi
if command -v udevadm >/dev/null && [[ $(id -u) == 0 ]]; then check "udev rules" verify_rules; fi
check "kernel modules' names" modules_are_plain_names
check "the agent's mounts reach the host" agent_keeps_the_hosts_mounts
exit "$failed"
