#!/bin/bash
# In a guest of rds-vm: rds-scenario, with an agent that is started as a container runtime would start
# it for deploy/chart/templates/agent.yaml.
#   in-guest.sh BIN ROOT SCENARIO [ARGUMENT...]      ROOT: what the image holds
set -euo pipefail
[[ ${RDS_VM:-} == 1 ]] || { echo "in-guest.sh: for a guest of rds-vm only" >&2; exit 2; }
bin=$1 image=$2
shift 2
pod=/scratch/pod
mkdir -p $pod/bin
cp -a "$image" $pod/root
# Mount points, which a runtime makes before the root becomes read-only. /scratch/rds is what the
# scenarios have in place of /run/rds-csi.
mkdir -p $pod/root/{proc,sys,dev,run/udev,run/nvme,var/lib/rds-csi,var/lib/kubelet,scratch/rds,.old}
mkdir -p /run/nvme /var/lib/rds-csi /var/lib/kubelet /scratch/rds
# systemd has all of a host shared; without that the pod would not be started.
mount --bind /var/lib/kubelet /var/lib/kubelet
mount --make-rshared /var/lib/kubelet

# The scenarios look for programs beside their own.
for program in rds-scenario rds-sim rds-csi-controller rds-csi-shim; do
	: >$pod/bin/$program
	mount --bind "$bin/$program" $pod/bin/$program
done
cat >$pod/bin/rds-node-agent <<'END'
#!/bin/sh
# busybox is static: it goes on when the root that it came from is no more.
exec unshare --mount --propagation unchanged /bin/busybox sh -eu -c '
b=/bin/busybox root=/scratch/pod/root
$b mount --bind $root $root
$b mount --make-private $root
$b mount -t proc proc $root/proc
for path in /sys /dev /run/udev /run/nvme /var/lib/rds-csi /scratch/rds; do
	$b mount --rbind $path $root$path
	$b mount --make-rprivate $root$path
done
# Bidirectional: of the same peers as on the host.
$b mount --rbind /var/lib/kubelet $root/var/lib/kubelet
$b mount -o remount,ro,bind $root
cd $root
$b pivot_root . .old
b=/.old/bin/busybox
# So that its end is not the end of the mounts on the host.
$b mount --make-rslave /.old
$b umount -l /.old
cd /
export PATH=/usr/sbin:/usr/bin
exec rds-node-agent "$@"
' pod "$@"
END
chmod +x $pod/bin/rds-node-agent
$pod/bin/rds-node-agent --version
exec $pod/bin/rds-scenario "$@"
