#!/bin/bash
# Puts everything that belongs on a host into a directory, as both packages contain it:
#   stage.sh BINARY DIRECTORY
set -euo pipefail
binary=$1 root=$2
here=$(cd "$(dirname "$0")" && pwd)
host=$here/.. top=$here/../..
put() { install -D -m "$1" "$2" "$root/$3"; }

put 755 "$binary" usr/bin/rds-node-agent
# The dev profile keeps what debuggers read, a hundred times the size of the program.
strip --strip-unneeded "$root/usr/bin/rds-node-agent"
for unit in "$host"/*.service; do put 644 "$unit" "usr/lib/systemd/system/${unit##*/}"; done
put 644 "$host/modules-load.d/rds-csi.conf" usr/lib/modules-load.d/rds-csi.conf
put 644 "$host/sysusers.d/rds-csi.conf" usr/lib/sysusers.d/rds-csi.conf
put 644 "$host/tmpfiles.d/rds-csi.conf" usr/lib/tmpfiles.d/rds-csi.conf
for rules in "$host"/udev/*.rules; do put 644 "$rules" "usr/lib/udev/rules.d/${rules##*/}"; done
put 644 "$host/multipath/rds-csi.conf" etc/multipath/conf.d/rds-csi.conf
put 644 "$here/agent.env" etc/rds-csi/agent.env
put 644 "$top/LICENSE" usr/share/doc/rds-node-agent/LICENSE
put 644 "$top/docs/install-node.md" usr/share/doc/rds-node-agent/install-node.md

# Manual pages and completions come from the program itself.
man=$root/usr/share/man/man1
mkdir -p "$man"
if "$binary" man --dir "$man" 2>/dev/null; then gzip -9n "$man"/*; else rm -r "${man%/*}"; fi
complete() { # SHELL FILE
	local text
	text=$("$binary" completions "$1" 2>/dev/null) || return 0
	install -D -m 644 /dev/stdin "$root/$2" <<<"$text"
}
complete bash usr/share/bash-completion/completions/rds-node-agent
complete zsh usr/share/zsh/vendor-completions/_rds-node-agent
complete fish usr/share/fish/vendor_completions.d/rds-node-agent.fish
