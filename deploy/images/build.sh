#!/bin/bash
# Images of the controller and the shim, from static programs, without Docker: in target/images one
# OCI layout as a tar file each, and beside it what is in it (CycloneDX).
#   ARCH=amd64|arm64 TARGET=TRIPLE deploy/images/build.sh
# TARGET is by default the musl target of ARCH if rustup has it, else that of glibc.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=deploy/images
target_dir=${CARGO_TARGET_DIR:-target}
out=$target_dir/images
limit=$((12 * 1000 * 1000))
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
has() { [[ -d $(rustc --print sysroot)/lib/rustlib/$1/lib ]]; }
triple=${TARGET:-$machine-unknown-linux-musl}
[[ -n ${TARGET:-} ]] || has "$triple" || triple=$machine-unknown-linux-gnu
has "$triple" || {
	echo "build.sh: Rust cannot build for $triple here: rustup target add $triple (and a C compiler for it)" >&2
	exit 1
}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# Whoever builds the same source gets the same image.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
mkdir -p "$out"

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

for name in rds-csi-controller rds-csi-shim; do
	# Each by itself: one that is built with others has what those need.
	RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
		${CARGO:-cargo} build --release -p "$name" --bin "$name" --target "$triple" --target-dir "$target_dir/static"
	program=$target_dir/static/$triple/release/$name
	runs_alone "$program" || {
		echo "build.sh: $program does not run by itself; is it static?" >&2
		exit 1
	}
	image=$out/${name}_${version}_$arch.tar
	"$here/oci.py" "$program" --version "$version" --arch "$arch" --epoch "$epoch" --out "$image"
	"$here/sbom.py" "$name" --target "$triple" --epoch "$epoch" --out "${image%.tar}.cdx.json"
	size=$(stat -c %s "$image")
	((size < limit)) || {
		echo "build.sh: $image has $size bytes, and $limit are the limit" >&2
		exit 1
	}
done
ls -l "$out"
