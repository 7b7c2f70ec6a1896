#!/bin/bash
# In a guest of rds-vm: rds-sim against the kernel's own target, with the kernel's own initiator.
# The simulator runs in a network namespace of its own (not `ip netns exec`: that mounts another
# /sys, without configfs). Wants RDS_SIM, the binary.
#
#   cargo build -p rds-sim && rds-vm run --kernel 6.12 -- tests/rds-sim/tests/guest.sh
set -Eeuo pipefail

sim=${RDS_SIM:-target/debug/rds-sim}
state=/scratch/rds-sim
target=10.98.0.2
url=https://$target:8443/rest
nvmet=/sys/kernel/config/nvmet
prefix=nqn.2000-02.com.mikrotik
pid=

step() { printf 'guest: %7.2f %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }
fail() { trap - ERR; echo "guest: FAILED: $*" >&2; tail -n 20 "$state.err" >&2; dmesg | tail -n 25 >&2; exit 1; }
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
trap '[[ -z $pid ]] || kill -9 $pid 2>/dev/null' EXIT

until_true() {
	local what=$1 left=600
	shift
	until "$@"; do
		((left-- > 0)) || fail "timed out waiting for $what"
		sleep 0.1
	done
}
ctl() { "$sim" ctl --state-dir "$state" "$@"; }
# The value of a key of the one disk: `field SLOT KEY`.
field() { ctl list | python3 -c 'import json,sys; print(next(d for d in json.load(sys.stdin) if d["slot"]==sys.argv[1])[sys.argv[2]])' "$@"; }
is() { [[ $(field "$1" "$2") == "$3" ]]; }
rest() {
	local method=$1 path=$2
	shift 2
	curl -sS --fail-with-body --cacert "$state/cert.pem" -u "admin:$(<"$state/password")" \
		-H 'Content-Type: application/json' -X "$method" "$url/$path" ${1:+-d "$1"}
}
rest_answers() { rest GET system/resource >/dev/null 2>&1; }
# Controller directory of a subsystem, in any state.
controller() {
	local file
	for file in /sys/class/nvme/nvme*/subsysnqn; do
		if [[ -e $file && $(cat "$file" 2>/dev/null) == "$prefix:$1" ]]; then
			dirname "$file"
			return 0
		fi
	done
}
fate() {
	local c
	c=$(controller "$1")
	if [[ -n $c ]]; then cat "$c/state" 2>/dev/null || echo going; else echo removed; fi
}
# A plain `! command` is never an error to bash.
not() { if "$@"; then fail "should have failed: $*"; fi; }
state_is() { local c; c=$(controller "$1"); [[ -n $c && $(<"$c/state") == "$2" ]]; }
gone() { [[ -z $(controller "$1") ]]; }
connect() { nvme connect -t tcp -a "$target" -s 4420 -n "$prefix:$1" --ctrl-loss-tmo=-1 --reconnect-delay=1 --keep-alive-tmo=2 "${@:2}"; }
serial_of() { cat "$(controller "$1")/serial"; }
ready_or_dead() { grep -qx ready "$state.out" || ! kill -0 $pid 2>/dev/null; }

start() {
	: >"$state.out"
	nsenter --net=/run/netns/rdssim "$sim" --state-dir "$state" --rest-addr $target:8443 --ssh-addr $target:8022 \
		--portal $target:4420 --pool raid10:256M --ssh-host-key ed25519 --boot-stage-ms 200 "$@" >"$state.out" 2>>"$state.err" &
	pid=$!
	until_true "ready" ready_or_dead
	kill -0 $pid || fail "rds-sim did not start"
}

step "kernel $(uname -r)"
ip netns add rdssim
ip link add sim0 type veth peer name sim1 netns rdssim
ip addr add 10.98.0.1/24 dev sim0
ip link set sim0 up
ip -n rdssim addr add $target/24 dev sim1
ip -n rdssim link set lo up
ip -n rdssim link set sim1 up
mkdir -p "$state"
start

step "create and export"
for v in v1 v2; do
	rest POST disk/add '{"type":"file","slot":"'$v'","file-path":"/raid10/'$v'.img","file-size":"67108864","mount-filesystem":"no","nvme-tcp-export":"yes"}'
	echo
	until_true "export of $v" is $v exported True
done
nvme discover -t tcp -a $target -s 4420 | grep subnqn
connect v1
until_true "live" state_is v1 live
[[ $(serial_of v1) == "$(field v1 serial)"* ]]
grep -q Linux "$(controller v1)/model"
step "firmware $(<"$(controller v1)/firmware_rev"), nvmet $(field v1 nvmet)"

step "allow list: live controllers untouched, strangers refused by the target, the host let in"
ours=11111111-1111-1111-1111-111111111111
stranger=22222222-2222-2222-2222-222222222222
as() { connect "$1" --hostnqn="nqn.2014-08.org.nvmexpress:uuid:$2" --hostid="$2"; }
for v in v1 v2; do
	rest POST disk/set '{".id":"'$v'","nvme-tcp-server-allow-host-name":"nqn.2014-08.org.nvmexpress:uuid:'$ours'"}'
	until_true "allow list of $v" test -L "$nvmet/subsystems/$prefix:$v/allowed_hosts/nqn.2014-08.org.nvmexpress:uuid:$ours"
done
sleep 1
state_is v1 live
# v2, which nobody is connected to: for v1, nvme-cli would say "already connected" on its own.
dmesg -C
not as v2 $stranger
dmesg | grep -q "uuid:$stranger.*not allowed" || fail "not the target's refusal"
as v2 $ours
until_true "live" state_is v2 live
nvme disconnect -n $prefix:v2 >/dev/null
for v in v1 v2; do
	rest POST disk/set '{".id":"'$v'","nvme-tcp-server-allow-host-name":""}'
done
until_true "allow list gone" test ! -d "$nvmet/hosts/nqn.2014-08.org.nvmexpress:uuid:$ours"

step "packets dropped and healed: same identity"
before=$(field v1 uuid)
ctl drop-packets >/dev/null
until_true "connecting" state_is v1 connecting
ctl heal >/dev/null
until_true "live again" state_is v1 live
[[ $(field v1 uuid) == "$before" ]]

step "connections reset"
ctl reset-connections >/dev/null
sleep 3
until_true "live again" state_is v1 live

step "toggle: new identity, and the controller's fate is the kernel's"
ctl export-toggle v1 --off-for 1 >/dev/null
[[ $(field v1 uuid) != "$before" ]]
sleep 4
step "controller after the toggle: $(fate v1)"
nvme disconnect -n $prefix:v1 >/dev/null || true
until_true "gone" gone v1

step "grown: seen after a toggle only"
connect v1
until_true "live" state_is v1 live
ctl grow v1 100663296 >/dev/null
is v1 file_size 100663296
is v1 exported_size 67108864
nvme disconnect -n $prefix:v1 >/dev/null

step "reboot: portal first, exports late"
connect v2
until_true "live" state_is v2 live
ctl reboot --down 2 --export-delay 3 --stagger 1 >/dev/null
sleep 1
[[ ! -d $nvmet/subsystems/$prefix:v2 ]] || fail "v2 is still there"
listening() { nsenter --net=/run/netns/rdssim ss -Hltn | grep -q "$target:4420"; }
not listening
until_true "portal" listening
not is v2 exported True
until_true "v2 back" is v2 exported True
is v1 exported_size 100663296
step "controller after the reboot: $(fate v2)"
until_true "management back" rest_answers
nvme disconnect -n $prefix:v2 >/dev/null || true
until_true "gone" gone v2

step "reboot: silent"
connect v2
until_true "live" state_is v2 live
ctl reboot --down 5 --silent true --wait >"$state.reboot" &
waiter=$!
until_true "connecting after silence" state_is v2 connecting
wait $waiter
step "controller after the silent reboot: $(fate v2)"
[[ $(nsenter --net=/run/netns/rdssim nft list tables) != *rdssim* ]]
nvme disconnect -n $prefix:v2 >/dev/null || true

step "ssh"
ssh-keygen -q -t ed25519 -N '' -f "$state/user"
kill -9 $pid; wait $pid 2>/dev/null || true
[[ -d $nvmet/subsystems/$prefix:v1 ]]
step "killed and started again: cleaned up and restored"
start --authorized-keys "$state/user.pub"
until_true "v1 restored" is v1 exported True
echo "[$target]:8022 $(<"$state/ssh_host_key.pub")" >"$state/known_hosts"
run() { ssh -p 8022 -i "$state/user" -o UserKnownHostsFile="$state/known_hosts" -o StrictHostKeyChecking=yes -o BatchMode=yes admin@$target "$1" </dev/null; }
run ':onerror e in={ /disk set [find slot="v1"] comment="a b"; :put "S OK" } do={ :put "S ERR $e" }' | grep -q '^S OK'
run ':put [:serialize to=json options=json.no-string-conversion value=[/disk/print detail as-value where slot="v1"]]' | grep -q '"comment":"a b"'
run '/disk print detail where type=file'

step "SIGTERM leaves nothing"
kill $pid
wait $pid
pid=
left=$(find "$nvmet/subsystems" "$nvmet/ports" "$nvmet/hosts" -mindepth 1 -maxdepth 1 ! -name '*discovery*')
[[ -z $left ]] || fail "left: $left"
echo "guest: PASSED"
