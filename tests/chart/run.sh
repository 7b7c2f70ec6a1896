#!/bin/bash
# The chart without a cluster: what it says about itself must be so, wrong values must be refused,
# and the manifests must be what it gives. Prints `ok NAME` and `FAILED NAME`.
#   tests/chart/run.sh FOLDER_OF_BINARIES [HELM]     without HELM: what can be told without it
# What a real API server says of it is in tests/kube/tests/chart.rs.
set -euo pipefail
cd "$(dirname "$0")/../.."
binaries=$1 helm=${2:-}
chart=deploy/chart
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
check() { # NAME COMMAND...
	local name=$1
	shift
	if "$@" >"$work/out" 2>&1; then echo "ok chart: $name"; else
		sed 's/^/  /' "$work/out"
		echo "FAILED chart: $name"
		failed=1
	fi
}
none() { # what is left over must be nothing
	! grep .
}

# Each setting that a template gives is one that the program reads.
settings_of() { # TEMPLATE SOURCE_OF_ITS_LOG_SETTING PROGRAM...
	local template=$chart/templates/$1.yaml source=$2 used
	shift 2
	used=$(grep -oE 'name: (RDS_CSI_[A-Z_]+|RUST_LOG)' "$template" | cut -d' ' -f2 | sort -u)
	[[ $(wc -w <<<"$used") -ge 6 ]] || return 1
	comm -23 <(echo "$used") <({
		"$@" --help | grep -o 'RDS_CSI_[A-Z_]*'
		grep -oE 'RUST_LOG|RDS_CSI_LOG' "$source"
	} | sort -u) | sed "s|^|${1##*/} knows no |" | none
}
settings_exist() {
	settings_of controller controller/src/logging.rs "$binaries/rds-csi-controller" &&
		settings_of shim csi-shim/src/main.rs "$binaries/rds-csi-shim" &&
		settings_of agent node-agent/src/logging.rs "$binaries/rds-node-agent" serve
}

# Alerts and the dashboard ask for metrics that docs/metrics.md explains.
metrics_exist() {
	local known used
	known=$(grep -ohE '`[a-z_]+`' docs/metrics.md | tr -d '`' |
		sed 'p; s/^/rds_csi_controller_appliance_/' | sort -u)
	used=$(grep -ohE 'rds_csi_[a-z_]+' $chart/files/* | sed -E 's/_(bucket|sum|count)$//' | sort -u)
	[[ $(wc -l <<<"$used") -ge 15 ]]
	comm -23 <(echo "$used") <(echo "$known") | sed 's/^/no such metric: /' | none
}
alerts_are_documented() {
	grep -E '^ +(expr|- alert): ' $chart/files/alerts.yaml | sort |
		comm -23 - <(sort docs/metrics.md) | none
}
# Keys of the StorageClass that the schema takes are those that the controller does.
keys_are_documented() {
	diff <(sed -nE '/^\| key /,/^$/s/^\| (`[^|]*) \|.*/\1/p' docs/storageclass.md |
		grep -o '`[A-Za-z./]*`' | tr -d '`' | grep -v '/\|^fsType$' | sort) \
		<(python3 -c '
import json
classes = json.load(open("deploy/chart/values.schema.json"))["properties"]["storageClasses"]
print(*classes["items"]["properties"]["parameters"]["properties"], sep="\n")' | sort)
}
# Else delayed binding waits for ever. Where no node has a topology it is not published, so it must
# not be announced (templates/_helpers.tpl).
capacity_is_published() {
	local file announced
	for file in deploy/manifests/*.yaml; do
		announced=no
		! grep -q RDS_TOPOLOGY "$file" || announced=yes
		if [[ $announced == yes ]]; then
			grep -q 'storageCapacity: true' "$file" && grep -q -- '- --enable-capacity' "$file" &&
				grep -q -- '- --capacity-ownerref-level=2' "$file" &&
				grep -q 'resources: \[csistoragecapacities\], verbs: \[get, list, watch, create, update, patch, delete\]' "$file"
		else
			grep -q 'storageCapacity: false' "$file" && ! grep -qi 'enable-capacity\|csistoragecapacities' "$file"
		fi || { echo "$file"; return 1; }
	done
	[[ $(grep -l 'storageCapacity: true' deploy/manifests/*.yaml | wc -l) == 1 ]]
}
no_secrets() {
	sed 's/automountServiceAccountToken//' $chart/values.yaml $chart/templates/*.yaml deploy/manifests/*.yaml |
		{ ! grep -niE '(password|token|privatekey): *[^ {]'; }
}

check "settings are flags of the programs" settings_exist
check "alerts and the dashboard use metrics that exist" metrics_exist
check "alerts are those of docs/metrics.md" alerts_are_documented
check "StorageClass keys are those of docs/storageclass.md" keys_are_documented
check "capacity is published where it is announced, and only there" capacity_is_published
check "nothing has a secret in it" no_secrets
check "the manifests are what the chart gives" deploy/render.py --check $helm
check "images have the same bytes twice and right digests, and the agent's works by itself" \
	tests/chart/images.py tests/chart/build.sh "$binaries/rds-node-agent"
if [[ -z $helm ]]; then
	echo "SKIPPED: what needs Helm; tests/chart/build.sh builds it"
	exit $failed
fi

python3 - "$work" <<'END'
import json, sys
schema = json.load(open("deploy/chart/values.schema.json"))
for name, values in zip(schema["exampleNames"], schema["examples"]):
    json.dump(values, open(f"{sys.argv[1]}/{name}.json", "w"))
END
for example in "$work"/*.json; do
	name=${example##*/}
	check "lint, ${name%.json}" "$helm" lint --strict --quiet --kube-version 1.36.0 "$chart" --values "$example"
done

refuses() { # MESSAGE ARGUMENT...
	local message=$1
	shift
	if "$helm" template x "$chart" --kube-version 1.36.0 --values "$work/minimal.json" "$@" >"$work/rendered" 2>"$work/why"; then
		echo "was taken: $*"
		return 1
	fi
	grep -F -- "$message" "$work/why" || { cat "$work/why"; return 1; }
}
none_at_all() {
	! "$helm" template x "$chart" --kube-version 1.36.0 >/dev/null 2>"$work/why" &&
		grep -F "missing properties 'url', 'credentialsSecret', 'volumePaths'" "$work/why" &&
		grep -F "missing property 'registry'" "$work/why"
}
check "refused: nothing is given" none_at_all
while IFS='|' read -r arguments message; do
	# shellcheck disable=SC2086 # words are arguments
	check "refused: $arguments" refuses "$message" $arguments
done <<'END'
--set rds.password=x|at '/rds': additional properties 'password' not allowed
--set rds.url=http://10.0.0.2|at '/rds/url': 'http://10.0.0.2' does not match pattern
--set rds.url=https://me:secret@10.0.0.2|at '/rds/url'
--set rds.volumePaths=null|at '/rds/volumePaths': got null, want array
--set rds.volumePaths[0]=raid10|at '/rds/volumePaths/0': 'raid10' does not match pattern
--set clusterId=a/b|at '/clusterId'
--set controller.replicas=0|at '/controller/replicas': minimum: got 0, want 1
--set controller.detachStaleAfter=5|at '/controller/detachStaleAfter'
--set controller.replica=2|additional properties 'replica' not allowed
--set agent.mode=privileged|at '/agent/mode': value must be one of 'package', 'daemonset'
--set agent.mode=daemonset,agent.updateStrategy=Recreate|at '/agent/updateStrategy': value must be one of 'RollingUpdate', 'OnDelete'
--set storageClasses[0].name=x,storageClasses[0].fsType=zfs|at '/storageClasses/0/fsType': value must be one of
--set storageClasses[0].name=x,storageClasses[0].parameters.nrIOQueues=4|additional properties 'nrIOQueues' not allowed
--set storageClasses[0].name=x,storageClasses[0].parameters.nrIoQueues=0|at '/storageClasses/0/parameters/nrIoQueues'
--set snapshots.deletionPolicy=Keep|at '/snapshots/deletionPolicy'
--set image.registry=|at '/image/registry'
END
exit $failed
