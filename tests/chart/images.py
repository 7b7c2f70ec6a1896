#!/usr/bin/env python3
"""deploy/images/oci.py, on any file as the program: the same bytes twice, and each digest right.

    images.py PROGRAM
"""

import gzip
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

OCI = pathlib.Path(__file__).resolve().parents[2] / "deploy/images/oci.py"


def make(program, out, epoch):
    command = [OCI, program, "--version", "1.2.3", "--arch", "amd64", "--epoch", str(epoch), "--out", out]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: (m, archive.extractfile(m).read() if m.isfile() else None) for m in archive}


def main():
    program = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        first, second, later = (pathlib.Path(directory) / name for name in ("1.tar", "2.tar", "3.tar"))
        digest = make(program, first, 1_780_000_000)
        assert digest == make(program, second, 1_780_000_000)
        assert first.read_bytes() == second.read_bytes(), "not the same bytes twice"
        assert digest != make(program, later, 1_780_000_001), "the time is not in it"
        layout = members(first.read_bytes())

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
    assert config["config"]["Entrypoint"] == [f"/{program.name}"]
    assert config["config"]["User"] == "65532:65532", "not root"
    files = members(layer)
    assert sorted(files) == sorted(["etc", "etc/nsswitch.conf", program.name]), sorted(files)
    info, content = files[program.name]
    assert content == program.read_bytes() and info.mode == 0o755
    for info, _ in files.values():
        assert (info.uid, info.gid, info.mtime) == (0, 0, 1_780_000_000), info.name


main()
