# Part of both packages' scripts for removal: @WARNING@ in them.
if ls /dev/mapper/rds-pvc-* >/dev/null 2>&1; then
	cat >&2 <<-END
		rds-node-agent: volumes are in use on this host, and stay as they are:
		$(cd /dev/mapper && ls -d rds-pvc-* | sed 's/^/  /')
		Nothing brings their sessions back from now on, and nothing writes them back at
		shutdown. Either install the package again, which takes them over as they are, or
		drain this node. To reboot it as it is, unmount them; if a session is lost, make
		its I/O fail first: dmsetup message NAME 0 fail_if_no_path
	END
fi
