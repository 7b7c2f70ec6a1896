#!/bin/bash
# Images of the controller, the shim and the agent, without Docker: in target/images one OCI layout
# as a tar file each, and beside it what is in it (CycloneDX).
#   ARCH=amd64|arm64 TARGET=TRIPLE deploy/images/build.sh [NAME...]     default: all three
#   deploy/images/build.sh --dev [NAME...]
# Controller and shim are static programs, for TARGET: by default the musl target of ARCH if rustup
# has it, else that of glibc. The agent is linked with libudev and libblkid and calls the file
# systems' tools: it is built for this machine, and its image has those from this machine's packages
# (Debian or Ubuntu). For another ARCH there is no image of the agent.
#
# --dev: within seconds, for trying things out, of what `cargo build --workspace` left in
# target/debug, each with this machine's libraries: target/images-dev/NAME.tar.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=deploy/images
target_dir=${CARGO_TARGET_DIR:-target}
out=$target_dir/images
limit=$((12 * 1000 * 1000))
# What the agent calls (node-agent/src/node/format.rs, expand.rs), and what it tells people to call
# when a file system is damaged.
tools=(mkfs.ext4 mkfs.ext3 resize2fs mkfs.xfs xfs_growfs mkfs.btrfs btrfs e2fsck xfs_repair)
dev= names=()
for argument; do
	case $argument in
	--dev) dev=1 out=$target_dir/images-dev ;;
	rds-csi-controller | rds-csi-shim | rds-node-agent) names+=("$argument") ;;
	*)
		sed -n '2,/^set/s/^# \?//p' "$0" >&2
		exit 2
		;;
	esac
done
((${#names[@]} > 0)) || names=(rds-csi-controller rds-csi-shim rds-node-agent)
case $(uname -m) in aarch64) own=arm64 ;; *) own=amd64 ;; esac
arch=${ARCH:-$own}
case $arch in
amd64) machine=x86_64 ;;
arm64) machine=aarch64 ;;
*)
	echo "build.sh: ARCH is amd64 or arm64, not '$arch'" >&2
	exit 2
	;;
esac
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# Whoever builds the same source gets the same image.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

image() { # PROGRAM FILE [FLAG OF oci.py...]
	local program=$1 file=$2
	shift 2
	"$here/oci.py" "$program" --version "$version" --arch "$arch" --epoch "$epoch" --out "$work/image" \
		--license LICENSE "$@"
	# Whoever is reading an earlier one goes on reading that.
	mv "$work/image" "$file"
}
with_libraries() { # NAME FILE: of $work/NAME
	local flags=(--linked)
	if [[ $1 == rds-node-agent ]]; then
		# It mounts, and its socket and state are root's.
		flags+=(--user 0)
		flags+=("${tools[@]/#/--tool=}")
	fi
	image "$work/$1" "$2" "${flags[@]}"
}

if [[ -n $dev ]]; then
	for name in "${names[@]}"; do
		strip --strip-unneeded -o "$work/$name" "$target_dir/debug/$name"
		with_libraries "$name" "$out/$name.tar"
	done
	rm -r "$work"
	ls -l "$out"
	exit
fi

has() { [[ -d $(rustc --print sysroot)/lib/rustlib/$1/lib ]]; }
triple=${TARGET:-$machine-unknown-linux-musl}
[[ -n ${TARGET:-} ]] || has "$triple" || triple=$machine-unknown-linux-gnu
has "$triple" || {
	echo "build.sh: Rust cannot build for $triple here: rustup target add $triple (and a C compiler for it)" >&2
	exit 1
}
# Paths of this machine are no part of a program.
paths="--remap-path-prefix=$PWD=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"

# In an empty directory, without anything of this machine: a program that is not static does not
# start there.
runs_alone() { # PROGRAM
	local root status=0 inside=(unshare --user --map-root-user chroot)
	[[ $arch == "$own" ]] || return 0
	[[ $(id -u) != 0 ]] || inside=(chroot)
	root=$(mktemp -d)
	cp "$1" "$root/program"
	timeout 20 "${inside[@]}" "$root" /program --version || status=$?
	rm -r "$root"
	return $status
}
small_enough() { # FILE
	local size
	size=$(stat -c %s "$1")
	((size < limit)) || {
		echo "build.sh: $1 has $size bytes, and $limit are the limit" >&2
		exit 1
	}
}

static_image() { # NAME FILE
	local name=$1 file=$2 program=$target_dir/static/$triple/release/$1
	# Each by itself: one that is built with others has what those need.
	RUSTFLAGS="-C target-feature=+crt-static $paths" \
		${CARGO:-cargo} build --release -p "$name" --bin "$name" --target "$triple" --target-dir "$target_dir/static"
	runs_alone "$program" || {
		echo "build.sh: $program does not run by itself; is it static?" >&2
		exit 1
	}
	image "$program" "$file"
	"$here/sbom.py" "$name" --target "$triple" --epoch "$epoch" --out "${file%.tar}.cdx.json"
}
linked_image() { # NAME FILE
	local name=$1 file=$2 triple=$machine-unknown-linux-gnu
	# With a target, so that what runs in the compiler is built without these flags.
	RUSTFLAGS="$paths" \
		${CARGO:-cargo} build --release -p "$name" --bin "$name" --target "$triple" --target-dir "$target_dir/linked"
	cp "$target_dir/linked/$triple/release/$name" "$work/"
	with_libraries "$name" "$file"
	"$here/sbom.py" "$name" --target "$triple" --epoch "$epoch" --out "${file%.tar}.cdx.json" --image "$file"
}

for name in "${names[@]}"; do
	file=$out/${name}_${version}_$arch.tar
	if [[ $name != rds-node-agent ]]; then
		static_image "$name" "$file"
	elif [[ $arch == "$own" ]]; then
		linked_image "$name" "$file"
	else
		echo "build.sh: no image of $name for $arch: it has this machine's libraries, which are $own" >&2
		continue
	fi
	small_enough "$file"
done
rm -r "$work"
ls -l "$out"
