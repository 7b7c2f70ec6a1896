# Second stage, process 1 in the guest's root: modules, udev, the scratch disk, then the
# command. Standard streams are the console; the command's go to the host.
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

# nvmet opens files for direct I/O, which tmpfs refuses before 6.6: hence a real disk.
for name in /sys/class/block/vd*; do
	[ "$(cat "$name/serial")" = rds-scratch ] && disk=/dev/${name##*/}
done
[ -n "$disk" ] || fail "no scratch disk"
$bb mount -t ext4 -o noatime "$disk" /scratch || fail "mounting $disk"

for name in /sys/class/virtio-ports/*/name; do
	[ "$(cat "$name")" = rds.out ] && port=/dev/${name#/sys/class/virtio-ports/} port=${port%/name}
done
[ -n "$port" ] || fail "no port to the host"
# A port can be opened once only, and programs do reopen /dev/stdout: so a pipe before it.
$bb mkfifo /run/rds-vm/out
$bb cat /run/rds-vm/out >"$port" &
exec 3>/run/rds-vm/out

# Before the host ends a run that hangs: who is blocked, and where, for the console log.
( sleep "$BLOCKED_AFTER"; note "the deadline is near; blocked tasks:"; echo w >/proc/sysrq-trigger ) 3>&- &
# From here on the console tells what nvme and dm say.
$bb dmesg -n 7
note "ready"
printf '\036%s ready\n' "$TOKEN" >&3
( run_command ) </dev/null >&3 2>&1 3>&-
status=$?
note "the command ended with status $status"
# Same pipe as the output, so it arrives after it; then the host ends this machine.
printf '\036%s exit %s\n' "$TOKEN" "$status" >&3
sleep 10
$bb poweroff -f
