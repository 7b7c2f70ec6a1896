#!/usr/bin/env python3
"""deploy/images/oci.py: the same bytes twice, each digest right, and an image of dynamic programs that
works with nothing of this machine.

    images.py FILE PROGRAM     FILE: any, taken for a static program; PROGRAM: the node-agent
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[2]
OCI = TOP / "deploy/images/oci.py"
EPOCH = 1_780_000_000
# With /proc and /dev, as in a container, and else nothing of this machine.
ENTER = 'mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && exec chroot "$@"'


def make(program, out, *flags, epoch=EPOCH):
    command = [OCI, program, "--version", "1.2.3", "--arch", "amd64", "--epoch", str(epoch), "--out", out, *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout.strip()


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: (m, archive.extractfile(m).read() if m.isfile() else None) for m in archive}


def image(path, digest):
    """Its configuration, and its layer as bytes; everything in between is looked at."""
    layout = members(path.read_bytes())

    def blob(reference):
        data = layout["blobs/" + reference["digest"].replace(":", "/")][1]
        assert len(data) == reference["size"]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == reference["digest"]
        return data

    assert json.loads(layout["oci-layout"][1]) == {"imageLayoutVersion": "1.0.0"}
    (reference,) = json.loads(layout["index.json"][1])["manifests"]
    assert reference["digest"] == digest
    manifest = json.loads(blob(reference))
    config = json.loads(blob(manifest["config"]))
    (packed,) = [blob(layer) for layer in manifest["layers"]]
    layer = gzip.decompress(packed)
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    return config["config"], layer


def is_reproducible(directory, program, *flags):
    first, second, later = (directory / name for name in ("1.tar", "2.tar", "3.tar"))
    digest = make(program, first, *flags)
    assert digest == make(program, second, *flags)
    assert first.read_bytes() == second.read_bytes(), "not the same bytes twice"
    assert digest != make(program, later, *flags, epoch=EPOCH + 1), "the time is not in it"
    return image(first, digest)


def a_static_program(directory, program):
    config, layer = is_reproducible(directory, program)
    assert config["Entrypoint"] == [f"/{program.name}"]
    assert config["User"] == "65532:65532", "not root"
    files = members(layer)
    assert sorted(files) == sorted(["etc", "etc/nsswitch.conf", program.name]), sorted(files)
    info, content = files[program.name]
    assert content == program.read_bytes() and info.mode == 0o755
    for info, _ in files.values():
        assert (info.uid, info.gid, info.mtime) == (0, 0, EPOCH), info.name


def tools():
    (found,) = re.findall(r"^tools=\((.*)\)$", (TOP / "deploy/images/build.sh").read_text(), re.M)
    return found.split()


def tools_are_those_of_the_agent():
    """What its source calls, and what it tells people to call on a node."""
    grow = (TOP / "node-agent/src/node/expand.rs").read_text()
    make_and_mend = (TOP / "node-agent/src/node/format.rs").read_text()
    called = set(re.findall(r'\("([a-z0-9_]+)", vec!', grow))
    called |= set(re.findall(r'=> \("([a-z0-9_]+) ', make_and_mend))
    kinds = (TOP / "proto/src/params.rs").read_text()
    kinds = kinds[kinds.index("impl FsType"):kinds.index("fn parse")]
    called |= {f"mkfs.{name}" for name in re.findall(r'Self::\w+ => "(\w+)"', kinds)}
    assert len(called) >= 8, called
    assert called <= set(tools()), f"not in build.sh: {called - set(tools())}"


def needed(path):
    """What the loader will look for."""
    done = subprocess.run(["readelf", "--dynamic", path], capture_output=True, text=True, timeout=60)
    return re.findall(r"\(NEEDED\) .*\[(.+)\]", done.stdout)


def dynamic_programs(directory, program):
    stripped = directory / "rds-node-agent"
    subprocess.run(["strip", "--strip-unneeded", "-o", stripped, program], check=True, timeout=60)
    flags = ["--linked", "--user=0", f"--license={TOP / 'LICENSE'}", *(f"--tool={tool}" for tool in tools())]
    config, layer = is_reproducible(directory, stripped, *flags)
    assert (config["Entrypoint"], config["User"]) == (["/usr/bin/rds-node-agent"], "0:0")
    files = members(layer)
    programs = {name.rpartition("/")[2] for name in files if re.match("usr/s?bin/", name)}
    # mke2fs is what mkfs.ext4 is a name of. No shell, and nothing else.
    assert programs == {"rds-node-agent", "mke2fs", *tools()}, programs
    libraries = {name.rpartition("/")[2] for name in files if ".so" in name}
    root = directory / "root"
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        archive.extractall(root)
    for name, (info, content) in files.items():
        assert (info.uid, info.gid, info.mtime) == (0, 0, EPOCH), name
        assert info.mode & 0o7022 == 0 or info.issym(), f"{name} may be written to, or gives rights"
        if content and content.startswith(b"\x7fELF"):
            assert set(needed(root / name)) <= libraries, name
    packages = [name for name in files if name.startswith("var/lib/dpkg/status.d/")]
    assert len(packages) > 8, packages
    for name in packages:
        assert f"usr/share/doc/{name.rpartition('/')[2]}/copyright" in files, name
    for name in ["GPL-2", "LGPL-2.1"]:
        assert f"usr/share/common-licenses/{name}" in files
    assert "e2fsprogs=" in config["Labels"]["io.srvlab.csi.rds.debian-packages"]
    works_alone(root, config)


def works_alone(root, config):
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    for name in ("proc", "dev"):
        (root / name).mkdir()

    def run(*command, status=0):
        enter = ["unshare", "--mount", "--pid", "--fork", *user, "sh", "-c", ENTER, "sh", root, *command]
        environment = dict(variable.split("=", 1) for variable in config["Env"])
        environment["PATH"] += ":/bin"
        done = subprocess.run(enter, capture_output=True, text=True, timeout=120, env=environment)
        text = done.stdout + done.stderr
        assert done.returncode == status, f"{' '.join(command)} ended with {done.returncode}: {text}"
        return text

    assert "rds-node-agent" in run("rds-node-agent", "--version")
    # Nothing of a host is there, and doctor says so.
    assert "no agent answers" in run("rds-node-agent", "doctor", status=1)
    with open(root / "disk", "wb") as disk:
        disk.truncate(400 << 20)
    uuid = "5d0ab7c4-3a6f-4e0d-9d38-6a2f6d6f0001"
    for kind in ("ext4", "ext3"):
        run(f"mkfs.{kind}", "-q", "-F", "-U", uuid, "-m", "0", "-E", "lazy_itable_init=1,nodiscard", "/disk", "300M")
        run("e2fsck", "-fn", "/disk")
    run("resize2fs", "/disk")
    run("e2fsck", "-fn", "/disk")
    run("mkfs.xfs", "-q", "-f", "-K", "-m", f"uuid={uuid}", "/disk")
    run("xfs_repair", "-n", "/disk")
    run("mkfs.btrfs", "-q", "-f", "-K", "-U", uuid, "/disk")
    run("btrfs", "check", "--readonly", "/disk")
    # They work on what is mounted, which a test on a host may not.
    assert "xfs_growfs" in run("xfs_growfs", "-V")
    assert uuid in run("btrfs", "filesystem", "show", "/disk")


def main():
    with tempfile.TemporaryDirectory() as directory:
        a_static_program(pathlib.Path(directory), pathlib.Path(sys.argv[1]))
    tools_are_those_of_the_agent()
    with tempfile.TemporaryDirectory() as directory:
        dynamic_programs(pathlib.Path(directory), pathlib.Path(sys.argv[2]))


main()
