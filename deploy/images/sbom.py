#!/usr/bin/env python3
"""What a program is made of, as CycloneDX 1.5 JSON: the crates that are linked into it, by cargo, and
the packages of the system of which its image has something, by the records in there.

    sbom.py PACKAGE --target TRIPLE --epoch SECONDS --out FILE.json [--image FILE.tar]
"""

import argparse
import gzip
import io
import json
import os
import pathlib
import re
import subprocess
import tarfile
import time
import urllib.parse
import uuid

TOP = pathlib.Path(__file__).resolve().parents[2]
NAMESPACE = uuid.UUID("5d0ab7c4-3a6f-4e0d-9d38-6a2f6d6f0001")


def metadata(target):
    command = [*os.environ.get("CARGO", "cargo").split(), "metadata", "--format-version=1", "--locked", "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=TOP, check=True, capture_output=True, timeout=300).stdout)


def checksums():
    """Of each crate's archive, by name and version, from Cargo.lock."""
    text = (TOP / "Cargo.lock").read_text()
    found = re.findall(r'name = "(.+)"\nversion = "(.+)"\nsource = ".+"\nchecksum = "(.+)"', text)
    return {(name, version): checksum for name, version, checksum in found}


def linked(data, root):
    """Ids of the packages that are linked into root: no build and no test dependencies."""
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    # What only runs in the compiler is not in the program.
    macros = {p["id"] for p in data["packages"] if any("proc-macro" in t["kind"] for t in p["targets"])}
    edges, waiting = {}, [root]
    while waiting:
        this = waiting.pop()
        if this in edges:
            continue
        edges[this] = sorted(
            dep["pkg"] for dep in nodes[this]["deps"]
            if dep["pkg"] not in macros and any(kind["kind"] is None for kind in dep["dep_kinds"]))
        waiting += edges[this]
    return edges


def component(package, checksum):
    purl = f"pkg:cargo/{package['name']}@{package['version']}"
    found = {"type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"], "purl": purl}
    if package.get("license"):
        found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum:
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return found


def files_of(image):
    """What the layers of an image hold, by path."""
    with tarfile.open(image) as layout:
        def blob(reference):
            return layout.extractfile("blobs/" + reference["digest"].replace(":", "/")).read()

        (reference,) = json.load(layout.extractfile("index.json"))["manifests"]
        files = {}
        for layer in json.loads(blob(reference))["layers"]:
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob(layer)))) as archive:
                files |= {m.name: archive.extractfile(m).read().decode(errors="replace") for m in archive if m.isfile()}
    return files


def fields(text, separator):
    return dict(line.split(separator, 1) for line in text.splitlines() if separator in line)


def system_packages(image):
    files = files_of(image)
    release = {key: value.strip('"') for key, value in fields(files["usr/lib/os-release"], "=").items()}
    distribution = f"{release['ID']}-{release['VERSION_ID']}"
    for path, text in sorted(files.items()):
        if not path.startswith("var/lib/dpkg/status.d/"):
            continue
        record = fields(text, ": ")
        name, version = record["Package"], record["Version"]
        purl = (f"pkg:deb/{release['ID']}/{name}@{urllib.parse.quote(version, safe='~.-')}"
                f"?arch={record['Architecture']}&distro={distribution}")
        known = re.findall(r"/usr/share/common-licenses/([A-Za-z]+(?:-[0-9.]*[0-9])?)", files[f"usr/share/doc/{name}/copyright"])
        yield {
            "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
            # As its copyright file names them; what is whose is in there.
            "licenses": [{"license": {"name": licence}} for licence in sorted(set(known)) or ["see its copyright file"]],
            "properties": [
                {"name": "debian:source", "value": record["Source"]},
                {"name": "image:copyright", "value": f"/usr/share/doc/{name}/copyright"},
            ],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--target", required=True)
    parser.add_argument("--epoch", required=True, type=int)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--image", type=pathlib.Path)
    args = parser.parse_args()
    data = metadata(args.target)
    packages = {package["id"]: package for package in data["packages"]}
    root = next(p["id"] for p in data["packages"] if p["name"] == args.package and p["id"] in data["workspace_members"])
    edges, sums = linked(data, root), checksums()
    parts = {
        id: component(packages[id], sums.get((packages[id]["name"], packages[id]["version"])))
        for id in edges
    }
    whole = dict(parts[root], type="application")
    system = list(system_packages(args.image)) if args.image else []
    needs = {parts[id]["bom-ref"]: [parts[dep]["bom-ref"] for dep in deps] for id, deps in edges.items()}
    needs[whole["bom-ref"]] += [part["bom-ref"] for part in system]
    body = {
        "metadata": {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(args.epoch)), "component": whole},
        "components": sorted([part for id, part in parts.items() if id != root] + system, key=lambda p: p["bom-ref"]),
        "dependencies": [{"ref": ref, "dependsOn": deps} for ref, deps in sorted(needs.items())],
    }
    # The same content has the same number.
    number = uuid.uuid5(NAMESPACE, json.dumps(body, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": f"urn:uuid:{number}", "version": 1}
    args.out.write_text(json.dumps(head | body, indent=1) + "\n")
    print(f"{len(parts) - 1} crates, {len(system)} packages of the system")


main()
