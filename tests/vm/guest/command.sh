# Last stage, with modules and udev up: the scratch disk, the port to the host, the command.
# Part of root.sh, or the one service of a guest that systemd has booted. Standard streams
# are the console; the command's go to the host.
bb=/run/rds-vm/busybox
. /run/rds-vm/job.sh
note() { echo "rds-vm: $(cut -d' ' -f1 /proc/uptime) $*"; }
fail() { echo "rds-vm: boot failed: $*"; $bb poweroff -f; }
cut() { $bb cut "$@"; }

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

# Interfaces are known by their addresses: udev may rename them.
interface() { # ADDRESS
	for name in /sys/class/net/*; do
		case $(cat "$name/address") in $1) echo "${name##*/}" ;; esac
	done
}
if [ -n "$RDS_VM_LINK$RDS_VM_HOST" ]; then
	/sbin/modprobe virtio_net && /bin/udevadm settle --timeout=60
fi
# The link to a guest beside this one.
if [ -n "$RDS_VM_LINK" ]; then
	link=$(interface '52:54:00:98:00:*')
	[ -n "$link" ] || fail "no link to the other guest"
	$bb ifconfig "$link" "$RDS_VM_LINK" netmask 255.255.255.0 up || fail "setting $link up"
fi
# The network to the host, as QEMU lays it out.
if [ -n "$RDS_VM_HOST" ]; then
	link=$(interface 52:54:00:97:00:01)
	[ -n "$link" ] || fail "no network to the host"
	$bb ifconfig "$link" 10.0.2.15 netmask 255.255.255.0 up || fail "setting $link up"
	$bb route add default gw "$RDS_VM_HOST" || fail "routing to the host"
fi

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
