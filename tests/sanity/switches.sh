#!/bin/bash
# Which flags to run tests/sanity/run.sh with, one run a line: both transports, and each
# switch of rds-sim (a guess about the appliance) both ways, so that each pair of values of any
# two of them meets in some run.
#
#   tests/sanity/switches.sh            prints the runs
#   tests/sanity/switches.sh --check    fails if a pair is missing
#
# Run 0 has the first value of all. Each switch then has its second value in 4 of 6 further
# runs, and no two switches in the same 4. So two switches have both their second values in
# at least two runs, and each has it alone in some run: 7 runs do for up to 15 switches
# (Kleitman and Spencer, "Families of k-independent sets").
set -euo pipefail

# NAME:FIRST:SECOND; what run.sh is given. A value that is empty gives no flag.
switches=(
	"--transport:rest:ssh"
	"--existing-file:reuse:refuse"
	"--full-pool:refuse:silent"
	"--export-read-back:actual:configured"
	"--nqn-read-back:effective:configured"
	"--ids-after-reboot:keep:renumber"
	"--ssh-json:typed:strings"
	"--ssh-error-context::yes"
	"--ssh-host-key:ed25519:rsa"
	"--create-parents::yes"
	"--allow-host-list::yes"
	"--allow-shrink::yes"
	"--export-off-kills:true:false"
	"--allocate:sparse:full"
	"--btrfs::yes"
)
runs=7

# The 4-element subsets of the runs 1 to 6, as bit masks.
subsets=()
for ((mask = 0; mask < 1 << (runs - 1); mask++)); do
	ones=0
	for ((bit = mask; bit > 0; bit >>= 1)); do ones=$((ones + (bit & 1))); done
	((ones != 4)) || subsets+=("$mask")
done
if ((${#switches[@]} > ${#subsets[@]})); then
	echo "$0: ${#switches[@]} switches need more than $runs runs" >&2
	exit 1
fi

second() { # SWITCH RUN: whether it has its second value there
	(($2 > 0 && (subsets[$1] >> ($2 - 1)) & 1))
}

if [[ ${1:-} == --check ]]; then
	for ((a = 0; a < ${#switches[@]}; a++)); do
		for ((b = a + 1; b < ${#switches[@]}; b++)); do
			seen=" "
			for ((run = 0; run < runs; run++)); do
				pair=
				for s in "$a" "$b"; do
					if second "$s" "$run"; then pair+=2; else pair+=1; fi
				done
				seen+="$pair "
			done
			for pair in 11 12 21 22; do
				if [[ $seen != *" $pair "* ]]; then
					echo "${switches[a]} and ${switches[b]} never have the values $pair" >&2
					exit 1
				fi
			done
		done
	done
	exit 0
fi

for ((run = 0; run < runs; run++)); do
	words=()
	for ((s = 0; s < ${#switches[@]}; s++)); do
		IFS=: read -r name first value <<<"${switches[s]}"
		second "$s" "$run" || value=$first
		case $name:$value in
		*:) ;;
		# With colons in its value. What kind a pool is can be known; that each guess is also made
		# on the other kind is what matters.
		--btrfs:yes) words+=(--sim --pool=raid10:64G:btrfs) ;;
		--transport:*) words=("$name" "$value" "${words[@]}") ;;
		*:yes) words+=(--sim "$name") ;;
		*) words+=(--sim "$name=$value") ;;
		esac
	done
	echo "${words[*]}"
done
