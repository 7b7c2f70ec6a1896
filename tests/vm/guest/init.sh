#!/busybox sh
# First stage, in the initramfs: makes the host's root file system, read only and under an
# overlay in memory, this guest's root. All mounts are made here, by busybox from memory:
# each program that is started from the shared root costs a file system round trip first.
bb=/busybox
fail() { echo "rds-vm: boot failed: $*" >/dev/console; $bb poweroff -f; }
mount() { $bb mount "$@" || fail "mount $*"; }

$bb mkdir -p /proc /sys /lower /rw /root
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
. /job.sh

# "File exists" is not an error: a module may be built in, or loaded for another.
for module in /modules/*.ko; do $bb insmod "$module" 2>/dev/null; done

mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro hostroot /lower
mount -t tmpfs -o mode=755,size=75% overlay /rw
$bb mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root

cd /root || fail "cd /root"
$bb mkdir -p proc sys dev run tmp results scratch lib/modules/"$RELEASE" var/tmp
$bb mount --move /proc proc
$bb mount --move /sys sys
mount -t devtmpfs -o nosuid,mode=755 devtmpfs dev
$bb mkdir -p dev/pts dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o nosuid,nodev shm dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 run run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp tmp
# A checkout below one of these two, as CI may have it.
case $DIRECTORY in
/tmp/* | /run/*)
	$bb mkdir -p ".$DIRECTORY"
	mount -o bind "/lower$DIRECTORY" ".$DIRECTORY"
	;;
esac
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 sys/fs/cgroup
mount -t debugfs debugfs sys/kernel/debug
mount -o bind /lower"$KERNEL_DIR/lib/modules/$RELEASE" lib/modules/"$RELEASE"
# No cache: what a scenario wrote is on the host, even if this kernel panics next.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=none results results

$bb mkdir -p run/rds-vm run/lock
$bb cp /busybox /job.sh /second.sh /command.sh run/rds-vm/
exec $bb switch_root /root /run/rds-vm/busybox sh /run/rds-vm/second.sh
