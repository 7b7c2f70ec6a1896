# Second stage of a guest with --systemd: prepares the root for systemd, which becomes
# process 1. What this machine has enabled is not started: /etc/systemd is emptied in the
# overlay, and the boot's goal is a target of our own with the command in it. What systemd
# itself brings is kept, except for what only takes time here.
bb=/run/rds-vm/busybox
. /run/rds-vm/job.sh
fail() { echo "rds-vm: boot failed: $*"; $bb poweroff -f; }

[ -x /lib/systemd/systemd ] || fail "no systemd on this machine; tests/vm/setup.sh installs it"
$bb hostname rds-vm
$bb ifconfig lo up
[ -s /etc/machine-id ] || $bb tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
echo 1 >/proc/sys/kernel/sysrq

$bb rm -rf /etc/systemd/system /etc/systemd/*.conf.d /var/lib/systemd /var/log/journal
$bb mkdir -p /etc/systemd/system
# A container's way to keep packages from starting services.
$bb rm -f /usr/sbin/policy-rc.d
# With it man-db indexes all manual pages anew after each dpkg, for minutes.
$bb rm -f /var/lib/man-db/auto-update
for file in /etc/fstab /etc/crypttab; do : >"$file"; done
units=/run/systemd/system
$bb mkdir -p $units /run/systemd/journald.conf.d /run/systemd/system.conf.d
for unit in systemd-hwdb-update systemd-update-done systemd-machine-id-commit systemd-pstore \
	systemd-random-seed systemd-binfmt systemd-firstboot systemd-boot-system-token ldconfig \
	systemd-timesyncd systemd-networkd systemd-resolved systemd-logind keyboard-setup \
	console-setup apparmor systemd-journal-catalog-update systemd-network-generator \
	systemd-tpm2-setup-early systemd-pcrphase-sysinit; do
	$bb ln -s /dev/null $units/$unit.service
done
for unit in getty.target timers.target swap.target cryptsetup.target dev-hugepages.mount \
	dev-mqueue.mount proc-sys-fs-binfmt_misc.automount systemd-ask-password-console.path \
	systemd-ask-password-wall.path sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
	systemd-initctl.socket dbus.socket; do
	$bb ln -s /dev/null $units/$unit
done
# All of /sys takes seconds when emulated; these subsystems are what matters here.
$bb mkdir -p $units/systemd-udev-trigger.service.d $units/systemd-modules-load.service.d
cat >$units/systemd-udev-trigger.service.d/rds-vm.conf <<-END
	[Service]
	ExecStart=
	ExecStart=-udevadm trigger --type=subsystems --action=add
	ExecStart=-udevadm trigger --action=add --subsystem-match=block --subsystem-match=virtio-ports --subsystem-match=misc --subsystem-match=net --subsystem-match=nvme-fabrics
END
# What the command needs before it starts, and the host's own list does not name. nvme-tcp
# and dm-multipath are not in it: to load those is the package's business.
cat >$units/rds-vm-modules.service <<-END
	[Unit]
	DefaultDependencies=no
	Before=systemd-udev-trigger.service sysinit.target
	[Service]
	Type=oneshot
	RemainAfterExit=yes
	ExecStart=/sbin/modprobe -a virtio_console virtio_blk loop configfs nvmet nvmet-tcp ext4 veth
END
cat >$units/rds-vm-command.service <<-END
	[Unit]
	Description=The command of this guest
	Requires=rds-vm-modules.service
	After=rds-vm-modules.service systemd-udev-settle.service basic.target
	Wants=systemd-udev-settle.service
	[Service]
	ExecStart=/run/rds-vm/busybox sh /run/rds-vm/command.sh
	StandardOutput=file:/dev/console
	StandardError=file:/dev/console
	TimeoutStopSec=10
	TasksMax=infinity
	LimitNOFILE=65536
	OOMPolicy=continue
END
cat >$units/rds-vm.target <<-END
	[Unit]
	Description=A guest of rds-vm
	Requires=basic.target rds-vm-command.service
	After=basic.target
	AllowIsolate=yes
END
$bb ln -s rds-vm.target $units/default.target
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >/run/systemd/journald.conf.d/rds-vm.conf
exec /lib/systemd/systemd --show-status=no --log-target=journal-or-kmsg
