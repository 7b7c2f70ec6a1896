#!/bin/bash
# Builds the node-agent's .deb and .rpm into target/packages, from one staged tree:
#   PROFILE=release|dev  VERSION=...  systemd/package/build.sh
# Needs dpkg-deb and rpmbuild (package `rpm` on Debian, `dpkg` on Fedora), nothing else.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
target=${CARGO_TARGET_DIR:-target}
profile=${PROFILE:-release}
# Whoever hands the packages on puts an address here that reaches them.
email=${DEBEMAIL:-root@localhost}
# The workspace's one version; a package that is newer than it only for a test names its own.
version=${VERSION:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)}
[[ $version =~ ^[0-9][0-9A-Za-z.+~]*$ ]] || {
	echo "build.sh: '$version' is no version that dpkg and rpm both take, such as 1.2.3" >&2
	exit 2
}
for tool in dpkg-deb rpmbuild strip; do
	command -v "$tool" >/dev/null || {
		echo "build.sh: $tool is missing; tests/vm/setup.sh installs it on Debian (packages dpkg, rpm, binutils)" >&2
		exit 1
	}
done

${CARGO:-cargo} build --profile "$profile" --workspace --bin rds-node-agent
case $profile in dev) folder=debug ;; *) folder=$profile ;; esac
binary=$target/$folder/rds-node-agent

mkdir -p "$target/packages"
out=$(cd "$target/packages" && pwd)
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
"$here/stage.sh" "$binary" "$work/root"
# Those who rebuild the same source get the same packages.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH

# Libraries by what the program is linked with; elsewhere than on Debian by their names.
libraries() {
	if command -v dpkg-shlibdeps >/dev/null; then
		mkdir -p "$work/debian"
		printf 'Source: rds-node-agent\n\nPackage: rds-node-agent\nArchitecture: any\n' >"$work/debian/control"
		(cd "$work" && dpkg-shlibdeps -O root/usr/bin/rds-node-agent 2>/dev/null) |
			sed -n 's/^shlibs:Depends=//p'
	else
		echo "libc6, libudev1, libblkid1"
	fi
}

# One wording for both packages.
with_warning() { sed -e "/^@WARNING@\$/{r $here/removal-warning.sh" -e 'd}'; }

build_deb() {
	local arch=$1 root=$work/deb doc
	cp -a "$work/root" "$root"
	doc=$root/usr/share/doc/rds-node-agent
	rm "$doc/LICENSE"
	install -m 644 "$here/deb/copyright" "$doc/copyright"
	{
		echo "rds-node-agent ($version) unstable; urgency=medium"
		printf '\n  * Version %s.\n\n' "$version"
		echo " -- rds-csi contributors <$email>  $(date -uRd "@$SOURCE_DATE_EPOCH")"
	} | gzip -9n >"$doc/changelog.gz"
	mkdir "$root/DEBIAN"
	sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@EMAIL@/$email/" -e "s/@LIBRARIES@/$(libraries)/" \
		-e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$root" | cut -f1)/" \
		"$here/deb/control.in" >"$root/DEBIAN/control"
	(cd "$root" && find etc -type f -printf '/%p\n' | sort) >"$root/DEBIAN/conffiles"
	(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
	chmod 644 "$root"/DEBIAN/*
	local script
	for script in postinst prerm postrm; do
		with_warning <"$here/deb/$script" >"$root/DEBIAN/$script"
		chmod 755 "$root/DEBIAN/$script"
	done
	find "$root" -type d -exec chmod 755 {} +
	dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$work/built"
	# Whoever is reading an earlier one goes on reading that.
	mv "$work/built" "$out/rds-node-agent_${version}_$arch.deb"
}

build_rpm() {
	local arch=$1 root=$work/rpm
	cp -a "$work/root" "$root"
	# zsh looks for completions elsewhere there.
	if [[ -d $root/usr/share/zsh ]]; then
		mv "$root/usr/share/zsh/vendor-completions" "$root/usr/share/zsh/site-functions"
	fi
	(cd "$root" && find . -type f -o -type l) | sed 's/^\.//' | sort | while read -r file; do
		case $file in
		/etc/*) echo "%config(noreplace) $file" ;;
		*/LICENSE) echo "%license $file" ;;
		/usr/share/doc/*) echo "%doc $file" ;;
		*) echo "$file" ;;
		esac
	done >"$work/files"
	with_warning <"$here/rpm/rds-node-agent.spec" >"$work/spec"
	rpmbuild -bb --quiet --target "$arch-linux" --define "_topdir $work/rpmbuild" --dbpath "$work/rpmdb" \
		--define "_rpmdir $work" --define "_rpmfilename built" \
		--define "agent_version $version" --define "staged $root" --define "filelist $work/files" \
		"$work/spec"
	mv "$work/built" "$out/rds-node-agent-$version-1.$arch.rpm"
}

build_deb "$(dpkg --print-architecture)"
build_rpm "$(uname -m)"
ls -l "$out/rds-node-agent_${version}_"*.deb "$out/rds-node-agent-${version}-1."*.rpm
