#!/bin/bash
# In a guest of rds-vm: do the udev rules and multipath's blacklist do what they are for, on
# real devices? Prints `ok NAME` or `FAILED NAME` for each check.
set -euo pipefail
cd "$(dirname "$0")"
[[ ${RDS_VM:-} == 1 ]] || { echo "check-udev.sh: for a guest of rds-vm only" >&2; exit 2; }

volume=nqn.2000-02.com.mikrotik:pvc-5d0ab7c4-3a6f-4e0d-9d38-6a2f6d6f0001
root=nqn.2000-02.com.mikrotik:rootdisk
config=/sys/kernel/config/nvmet
failed=0
check() {
	local name=$1
	shift
	if "$@"; then echo "ok $name"; else
		echo "FAILED $name"
		failed=1
	fi
}
await() {
	local i
	for ((i = 0; i < 300; i++)); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	echo "check-udev.sh: timed out: $*" >&2
	return 1
}

mkdir -p /run/udev/rules.d /etc/multipath/conf.d
cp udev/10-rds-csi.rules /run/udev/rules.d/
cp multipath/rds-csi.conf /etc/multipath/conf.d/
# As unfriendly as it gets: any single path is multipath's.
printf 'defaults {\n\tfind_multipaths "greedy"\n}\n' >/etc/multipath.conf
udevadm control --reload

export_image() { # NQN: exports a file with a filesystem in it
	local subsystem=$config/subsystems/$1 image=/scratch/${1##*:}.img
	truncate -s 64M "$image"
	mkfs.ext4 -q "$image"
	mkdir "$subsystem"
	echo 1 >"$subsystem/attr_allow_any_host"
	mkdir "$subsystem/namespaces/1"
	echo "$image" >"$subsystem/namespaces/1/device_path"
	echo 1 >"$subsystem/namespaces/1/enable"
	ln -s "$subsystem" "$config/ports/1/subsystems/$1"
}
mkdir "$config/ports/1"
for setting in trtype:tcp adrfam:ipv4 traddr:127.0.0.1 trsvcid:4420; do
	echo "${setting#*:}" >"$config/ports/1/addr_${setting%%:*}"
done
export_image "$volume"
export_image "$root"
nvme connect -t tcp -a 127.0.0.1 -s 4420 -n "$volume"
nvme connect -t tcp -a 127.0.0.1 -s 4420 -n "$root"

namespace_of() { # NQN: its block device's name
	local block parent
	for block in /sys/class/block/nvme*n*; do
		parent=$(realpath "$block/device")
		if [[ -e $parent/subsysnqn && $(<"$parent/subsysnqn") == "$1" && -b /dev/${block##*/} ]]; then
			echo "${block##*/}"
			return
		fi
	done
	return 1
}
await namespace_of "$volume"
await namespace_of "$root"
raw=/dev/$(namespace_of "$volume")
disk=/dev/$(namespace_of "$root")
udevadm settle

property() { udevadm info --query=property "$1" | sed -n "s/^$2=//p"; }
links() { udevadm info --query=symlink "$1"; }
is() { [[ $(property "$1" "$2") == "$3" ]] || { udevadm info "$1" >&2; return 1; }; }
no_links() { [[ -z $(links "$1") ]] || { links "$1" >&2; return 1; }; }

check "a volume's namespace is not probed" is "$raw" ID_FS_TYPE ""
check "a volume's namespace has no links" no_links "$raw"
check "a volume's namespace is not ready for systemd" is "$raw" SYSTEMD_READY 0
check "a volume's namespace is ignored by udisks" is "$raw" UDISKS_IGNORE 1
check "a volume's namespace is no multipath path" is "$raw" DM_MULTIPATH_DEVICE_PATH 0
if [[ -x /sbin/multipath ]]; then
	# Makes a map of every path it finds, as multipathd would.
	multipath >/dev/null 2>&1 || true
	unclaimed() { [[ -z $(ls "/sys/class/block/${raw##*/}/holders") ]]; }
	check "multipath does not claim a volume's namespace" unclaimed
	if [[ $RDS_VM_MULTIPATH == N ]]; then
		# Otherwise the check before this one proves nothing.
		claimed() { [[ -n $(ls "/sys/class/block/${disk##*/}/holders") ]]; }
		check "multipath does claim other disks" claimed
	fi
	multipath -F >/dev/null 2>&1 || true
fi
check "a root disk on the same RDS is probed" is "$disk" RDS_CSI_NAMESPACE ""
if [[ ! -x /sbin/multipath ]]; then
	check "a root disk on the same RDS has its filesystem" is "$disk" ID_FS_TYPE ext4
fi

# As the agent makes it: no cookie.
dmsetup create rds-check --noudevsync --noudevrules --uuid RDSCSI-check --table \
	"0 $(blockdev --getsz "$raw") multipath 3 queue_if_no_path queue_mode bio 0 1 1 service-time 0 1 2 $(cat "/sys/class/block/${raw##*/}/dev") 1 1"
shield=/dev/$(basename "$(realpath /sys/dev/block/"$(dmsetup info -c --noheadings -o major,minor --separator : rds-check)")")
looks_right() {
	is "$shield" ID_FS_TYPE "" && is "$shield" SYSTEMD_READY 0 &&
		is "$shield" DM_UDEV_DISABLE_OTHER_RULES_FLAG 1 &&
		[[ $(links "$shield") == mapper/rds-check ]]
}
for action in change add change; do
	udevadm trigger --settle --action="$action" "$shield"
	check "a shield is private after '$action'" looks_right
done
if [[ -x /sbin/multipath ]]; then
	not_multipaths() { ! multipath -ll 2>/dev/null | grep -q rds-check; }
	check "a shield is not multipath's" not_multipaths
fi

# Without a path, everything that reads waits; udev must not be among it.
dmsetup suspend --noflush --nolockfs rds-check
dmsetup load rds-check --table \
	"0 $(blockdev --getsz "$shield") multipath 3 queue_if_no_path queue_mode bio 0 0 0"
dmsetup resume --noudevsync rds-check
settles() { timeout 20 udevadm trigger --settle --action=change "$shield"; }
check "udev does not wait for a shield without a path" settles

dmsetup message rds-check 0 fail_if_no_path
dmsetup remove --noudevsync rds-check
nvme disconnect -n "$volume" >/dev/null
nvme disconnect -n "$root" >/dev/null
exit "$failed"
