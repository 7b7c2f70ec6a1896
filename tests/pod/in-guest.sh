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
mkdir -p /var/lib/kubelet
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
# Only in here, and not of what is below: pivot_root refuses to work under a shared mount.
for parent in / /scratch; do $b mount --make-private $parent 2>/dev/null || true; done
# DirectoryOrCreate.
$b mkdir -p /run/udev /run/nvme /var/lib/rds-csi /scratch/rds
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

# With the settings that the DaemonSet gives.
rm -f /run/udev/rules.d/10-rds-csi.rules
RDS_CSI_UDEV_RULES_DIR=/run/udev/rules.d RDS_CSI_SOCKET=/scratch/rds/agent.sock \
	$pod/bin/rds-node-agent serve >/results/pod-agent.log 2>&1 &
agent=$!
for ((i = 0; i < 300; i++)); do
	[[ ! -S /scratch/rds/agent.sock ]] || break
	sleep 0.2
done
$pod/bin/rds-node-agent doctor --socket /scratch/rds/agent.sock -o wide | tee /results/pod-doctor.txt || true
failed=0
says() { # NAME WORDS: that doctor, which looks at the host from the container, has to say
	if grep -qE "$2" /results/pod-doctor.txt; then echo "ok pod: $1"; else
		echo "FAILED pod: $1"
		failed=1
	fi
}
says "the agent answers" '^ok +agent.answers: version'
says "it has put the udev rules in place" '^ok +udev.rules: /run/udev/rules.d/10-rds-csi.rules, as shipped'
says "the host's udevd is found" '^ok +udev.daemon: systemd-udevd runs'
says "the host's modules are found" '^ok +module.nvme_tcp: (loaded|built)'
says "what it mounts reaches kubelet" '^ok +mounts.propagation: .* is shared'
says "nobody else reads its journal" '^ok +permissions.state-dir'
says "its memory is locked" '^ok +agent.memory: locked'
says "the out-of-memory killer takes others first" '^ok +agent.oom-score'
says "nothing is done at shutdown, which it tells" '^warning +systemd.rds-csi-shutdown'
kill $agent
wait $agent || failed=1
((failed == 0)) || exit 1
exec $pod/bin/rds-scenario "$@"
