#!/usr/bin/env python3
"""An image of one program, as a tar file with an OCI image layout, without Docker.

    oci.py PROGRAM --version V --arch amd64|arm64 --epoch SECONDS --out FILE.tar
           [--linked [--tool NAME]...] [--user UID] [--license TEXT.FILE]

A static program is alone in there. With --linked the shared libraries that it is linked with are
beside it, and each --tool with its own, all from the packages of this Debian or Ubuntu machine.

The same program and the same packages give the same bytes: every time is EPOCH, every order and
owner is fixed. (Compressed bytes also depend on the zlib that Python has.)
"""

import argparse
import gzip
import hashlib
import json
import pathlib
import time

from debian import System
from tree import Tree

# Name service: the C library reads this file if there is one, and else has what it was built to
# believe.
FILES = {"etc/nsswitch.conf": b"hosts: files dns\n"}
# Nobody, as the controller runs; a DaemonSet that needs another user says so.
USER = 65532
PATH = "/usr/sbin:/usr/bin"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def compact(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def contents(program, system, licence):
    """The tree, and where the program is in it."""
    tree = Tree()
    for name, content in FILES.items():
        tree.file(name, content)
    place = f"usr/bin/{program.name}" if system else program.name
    tree.file(place, program.read_bytes(), 0o755)
    if system:
        system.into(tree)
    if licence:
        tree.file(f"usr/share/doc/{program.name}/LICENSE", licence.read_bytes())
    return tree, f"/{place}"


def labels_of(program, version, created, system):
    labels = {
        "org.opencontainers.image.title": program.name,
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.created": created,
    }
    if system:
        labels["org.opencontainers.image.licenses"] = "Apache-2.0 AND LicenseRef-Debian-packages"
        labels["io.srvlab.csi.rds.debian-packages"] = " ".join(f"{p.name}={p.version}" for p in system.packages)
        labels["io.srvlab.csi.rds.debian-sources"] = " ".join(sorted({f"{p.source}={p.source_version}" for p in system.packages}))
    return labels


def image(program, version, arch, epoch, system, user, licence):
    """The layout's files by their names, and the digest of its manifest."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    tree, entrypoint = contents(program, system, licence)
    layer = tree.tar(epoch)
    packed = gzip.compress(layer, compresslevel=9, mtime=0)
    labels = labels_of(program, version, created, system)
    run = {"Entrypoint": [entrypoint], "User": f"{user}:{user}", "WorkingDir": "/", "Labels": labels}
    if system:
        run["Env"] = [f"PATH={PATH}"]
    config = compact({
        "architecture": arch,
        "os": "linux",
        "created": created,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}"]},
        "history": [{"created": created, "created_by": "deploy/images/oci.py"}],
    })
    blobs = {}

    def blob(media, data):
        blobs[f"blobs/sha256/{sha256(data)}"] = data
        return {"mediaType": media, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    manifest = compact({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", config),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        "annotations": labels,
    })
    reference = blob("application/vnd.oci.image.manifest.v1+json", manifest)
    reference["platform"] = {"architecture": arch, "os": "linux"}
    reference["annotations"] = {
        "org.opencontainers.image.ref.name": version,
        # What `ctr images import` calls it.
        "io.containerd.image.name": f"localhost/{program.name}:{version}",
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [reference],
    }
    blobs["index.json"] = compact(index)
    blobs["oci-layout"] = compact({"imageLayoutVersion": "1.0.0"})
    return blobs, reference["digest"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--arch", required=True, choices=["amd64", "arm64"])
    parser.add_argument("--epoch", required=True, type=int)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--linked", action="store_true")
    parser.add_argument("--tool", action="append", default=[])
    parser.add_argument("--user", type=int, default=USER)
    parser.add_argument("--license", type=pathlib.Path)
    args = parser.parse_args()
    if args.tool and not args.linked:
        parser.error("--tool needs --linked: a static image has no libraries for it")
    system = System(args.program, args.tool) if args.linked else None
    files, digest = image(args.program, args.version, args.arch, args.epoch, system, args.user, args.license)
    layout = Tree()
    for name, data in files.items():
        layout.file(name, data)
    args.out.write_bytes(layout.tar(args.epoch))
    print(digest)


main()
