#!/usr/bin/env python3
"""An image of one static program, as a tar file with an OCI image layout, without Docker.

    oci.py PROGRAM --version V --arch amd64|arm64 --epoch SECONDS --out FILE.tar

The same program gives the same bytes: every time is EPOCH, every order and owner is fixed.
(Compressed bytes also depend on the zlib that Python has.)
"""

import argparse
import gzip
import hashlib
import io
import json
import pathlib
import tarfile
import time

# Name service of a static program: it reads this file if there is one, and else what the C
# library was built to believe.
FILES = {"etc/nsswitch.conf": b"hosts: files dns\n"}
# Nobody, as the controller runs; a DaemonSet that needs another user says so.
USER = 65532


def entry(name, size, mode, epoch, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.type = size, mode, epoch, kind
    return info


def tar(files, epoch):
    """files: of (name, bytes or None for a directory, mode)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content, mode in files:
            if content is None:
                archive.addfile(entry(name, 0, mode, epoch, tarfile.DIRTYPE))
            else:
                archive.addfile(entry(name, len(content), mode, epoch), io.BytesIO(content))
    return out.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def compact(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def layer_of(program, epoch):
    files = [("etc", None, 0o755)]
    files += [(name, content, 0o644) for name, content in sorted(FILES.items())]
    files.append((program.name, program.read_bytes(), 0o755))
    return tar(files, epoch)


def image(program, version, arch, epoch):
    """The layout's files by their names, and the digest of its manifest."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    layer = layer_of(program, epoch)
    packed = gzip.compress(layer, compresslevel=9, mtime=0)
    labels = {
        "org.opencontainers.image.title": program.name,
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.created": created,
    }
    config = compact({
        "architecture": arch,
        "os": "linux",
        "created": created,
        "config": {"Entrypoint": [f"/{program.name}"], "User": f"{USER}:{USER}", "WorkingDir": "/", "Labels": labels},
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
    args = parser.parse_args()
    files, digest = image(args.program, args.version, args.arch, args.epoch)
    layout = [("blobs", None, 0o755), ("blobs/sha256", None, 0o755)]
    layout += [(name, data, 0o644) for name, data in sorted(files.items())]
    args.out.write_bytes(tar(layout, args.epoch))
    print(digest)


main()
