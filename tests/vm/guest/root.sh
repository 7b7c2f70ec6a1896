# Second stage, process 1 in the guest's root: modules and udev, then command.sh.
bb=/run/rds-vm/busybox
. /run/rds-vm/job.sh
note() { echo "rds-vm: $(cut -d' ' -f1 /proc/uptime) $*"; }
fail() { echo "rds-vm: boot failed: $*"; $bb poweroff -f; }
cut() { $bb cut "$@"; }

note "second stage"
# systemd shares mounts; mount propagation into containers relies on that.
$bb mount --make-rshared /
$bb hostname rds-vm
$bb ifconfig lo up
[ -s /etc/machine-id ] || $bb tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
echo 1 >/proc/sys/kernel/sysrq

# What the harness and every scenario need: without these there is no point in going on.
/sbin/modprobe -a virtio_console virtio_blk loop configfs dm-mod dm-multipath dm-service-time \
	nvme-tcp nvmet nvmet-tcp ext4 veth || fail "a module is missing (see above)"
note "modules loaded"
# What some scenarios need, while udev starts: btrfs alone measures checksums for a second.
/sbin/modprobe -aq dm-round-robin xfs btrfs nf_tables nft_reject_inet nft_ct nft_counter sch_netem &
optional=$!
$bb mount -t configfs configfs /sys/kernel/config 2>/dev/null

# Only what matters here is replayed to udev: all of /sys takes seconds when emulated.
/lib/systemd/systemd-udevd --daemon || fail "systemd-udevd did not start"
/bin/udevadm trigger --type=subsystems --action=add
/bin/udevadm trigger --action=add --subsystem-match=block --subsystem-match=virtio-ports \
	--subsystem-match=misc --subsystem-match=net --subsystem-match=nvme-fabrics
/bin/udevadm settle --timeout=60 || note "udev did not settle"
note "udev settled"
wait "$optional"

. /run/rds-vm/command.sh
