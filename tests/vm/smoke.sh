#!/bin/bash
# In a guest of rds-vm: does everything work that the scenarios rely on? An NVMe/TCP target
# in a network namespace of its own, a session to it, a file system on it, and device-mapper
# multipath over it, with udev taking note. Leaves nothing behind, so it can run again.
#
#   rds-vm run --kernel 6.1 --multipath N -- tests/vm/smoke.sh
set -Eeuo pipefail

[[ ${RDS_VM:-} == 1 ]] || { echo "smoke.sh: for a guest of rds-vm only" >&2; exit 2; }

nqn=nqn.2024-01.example:rds-vm-smoke
target=10.99.0.2
uuid=5d0ab7c4-3a6f-4e0d-9d38-6a2f6d6f0001
config=/sys/kernel/config/nvmet
subsystem=$config/subsystems/$nqn
port=$config/ports/99
file=/scratch/smoke.img
mountpoint=/run/rds-vm-smoke

step() { printf 'smoke: %6.2f %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }
fail() { echo "smoke: FAILED: $*" >&2; dmesg | tail -n 20 >&2; exit 1; }
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# Waits until a command succeeds; emulated guests are slow, so the limit is far off.
until_true() {
	local what=$1 left=300
	shift
	until "$@"; do
		((left-- > 0)) || fail "timed out waiting for $what"
		sleep 0.1
	done
}

clean_up() {
	umount "$mountpoint" 2>/dev/null || true
	dmsetup remove --retry rds-vm-smoke 2>/dev/null || true
	nvme disconnect -n "$nqn" >/dev/null 2>&1 || true
	rm -f "$port/subsystems/$nqn"
	[[ ! -d $port ]] || rmdir "$port"
	if [[ -d $subsystem ]]; then
		[[ ! -d $subsystem/namespaces/1 ]] || rmdir "$subsystem/namespaces/1"
		rmdir "$subsystem"
	fi
	ip link del rds0 2>/dev/null || true
	ip netns del rds 2>/dev/null || true
	rm -f "$file" /run/rds-vm-smoke.events
}

# The block device of the one namespace. With native multipath it belongs to the subsystem
# (and each path's own device is hidden), else to the controller.
namespace_device() {
	local device
	for device in /sys/class/block/nvme*n*; do
		[[ -e $device/uuid && $(<"$device/uuid") == "$uuid" && -b /dev/${device##*/} ]] || continue
		echo "/dev/${device##*/}"
		return 0
	done
	return 1
}
namespace_present() { [[ -n $(namespace_device) ]]; }
namespace_gone() { ! namespace_present; }

clean_up
step "kernel $(uname -r), nvme_core.multipath=$(</sys/module/nvme_core/parameters/multipath)"
[[ $(</sys/module/nvme_core/parameters/multipath) == "$RDS_VM_MULTIPATH" ]]
[[ $(uname -r) == "$RDS_VM_KERNEL".* || $RDS_VM_KERNEL == 6.12 ]]

step "the host's files are read only, the overlay and the results are not"
touch "/root/.rds-vm-smoke" && rm "/root/.rds-vm-smoke"
date >"$RDS_VM_RESULTS/smoke"

step "network namespace and veth pair"
ip netns add rds
ip link add rds0 type veth peer name rds1 netns rds
ip addr add 10.99.0.1/24 dev rds0
ip link set rds0 up
ip -n rds addr add "$target"/24 dev rds1
ip -n rds link set lo up
ip -n rds link set rds1 up

step "target"
truncate -s 256M "$file"
mkdir "$subsystem"
echo 1 >"$subsystem/attr_allow_any_host"
mkdir "$subsystem/namespaces/1"
echo "$file" >"$subsystem/namespaces/1/device_path"
echo "$uuid" >"$subsystem/namespaces/1/device_uuid"
echo 1 >"$subsystem/namespaces/1/enable"
mkdir "$port"
echo tcp >"$port/addr_trtype"
echo ipv4 >"$port/addr_adrfam"
echo "$target" >"$port/addr_traddr"
echo 4420 >"$port/addr_trsvcid"
# The listener belongs to the network namespace of the process that enables the port.
# (Not `ip netns exec`: it would mount another /sys, without configfs.)
nsenter --net=/run/netns/rds ln -s "$subsystem" "$port/subsystems/$nqn"
ip netns exec rds ss -Hltn | grep -q "$target:4420" || fail "no listener in netns rds"

step "session"
udevadm monitor --udev --subsystem-match=block >/run/rds-vm-smoke.events &
monitor=$!
until_true "udevadm monitor to listen" grep -q '^UDEV' /run/rds-vm-smoke.events
nvme connect -t tcp -a "$target" -s 4420 -n "$nqn"
until_true "the namespace's block device" namespace_present
device=$(namespace_device)
until_true "udev's link to $device" test -e "/dev/disk/by-id/nvme-uuid.$uuid"
[[ $(readlink -f "/dev/disk/by-id/nvme-uuid.$uuid") == "$device" ]]
step "udev knows $device"

step "file system"
mkfs.ext4 -q "$device"
mkdir -p "$mountpoint"
mount "$device" "$mountpoint"
dd if=/dev/urandom of="$mountpoint/data" bs=1M count=8 conv=fsync status=none
sum=$(sha256sum <"$mountpoint/data")
umount "$mountpoint"

step "the same through dm multipath"
numbers=$(lsblk -dno MAJ:MIN "$device" | tr -d ' ')
sectors=$(blockdev --getsz "$device")
dmsetup create rds-vm-smoke --table \
	"0 $sectors multipath 3 queue_if_no_path queue_mode bio 0 1 1 service-time 0 1 2 $numbers 1 1"
[[ -b /dev/mapper/rds-vm-smoke ]] || fail "no /dev/mapper/rds-vm-smoke: does udev run?"
dmsetup status rds-vm-smoke | grep -q "$numbers A 0" || fail "path not active: $(dmsetup status)"
mount /dev/mapper/rds-vm-smoke "$mountpoint"
[[ $(sha256sum <"$mountpoint/data") == "$sum" ]] || fail "what was written is not what is read"
umount "$mountpoint"
dmsetup remove --retry rds-vm-smoke

step "disconnect"
nvme disconnect -n "$nqn" >/dev/null
until_true "$device to go" namespace_gone
udevadm settle
kill "$monitor"
wait "$monitor" 2>/dev/null || true
for event in "add .*${device##*/} " "remove .*${device##*/} " "change .*dm-"; do
	grep -q "$event" /run/rds-vm-smoke.events || fail "udev saw no '$event'"
done

clean_up
step "all is well"
