#!/bin/sh
# Installs what building rds-csi and running rds-vm need on Debian or Ubuntu, and only what
# is missing: with everything there it takes a moment, touches no network and needs no root.
#
#   tests/vm/setup.sh [PACKAGE...]     with these as well
set -eu

# What the guests run on and with (rds-vm and the scenarios), then what packages are
# made with, then what the build needs.
packages="
	qemu-system-x86 busybox-static kmod systemd udev nvme-cli dmsetup
	xfsprogs e2fsprogs btrfs-progs util-linux procps iproute2 nftables
	xz-utils zstd openssl
	binutils dpkg-dev rpm
	gcc libc6-dev libudev-dev libblkid-dev libclang-dev clang pkg-config
	$*"

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=
for package in $packages; do
	installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
	as_root=
elif command -v sudo >/dev/null; then
	as_root=sudo
else
	echo "setup.sh: as root, run: apt-get install --no-install-recommends$missing" >&2
	exit 1
fi

# Mirrors fail now and then; a test run should not for that reason.
retry() {
	for pause in 2 10 30; do
		"$@" && return
		echo "setup.sh: '$*' failed; again in $pause s" >&2
		sleep "$pause"
	done
	"$@"
}

install() {
	# shellcheck disable=SC2086 # a list of words
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
		--no-install-recommends -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 $missing
}

echo "setup.sh: installing$missing" >&2
# Lists may be absent, or so old that what they name is gone: both show as a failure.
install && exit 0
# shellcheck disable=SC2086
retry $as_root apt-get update -q
retry install
