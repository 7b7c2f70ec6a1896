#!/usr/bin/env python3
"""What a program is made of, as CycloneDX 1.5 JSON: the crates that are linked into it, by cargo.

    sbom.py PACKAGE --target TRIPLE --epoch SECONDS --out FILE.json
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import time
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--target", required=True)
    parser.add_argument("--epoch", required=True, type=int)
    parser.add_argument("--out", required=True, type=pathlib.Path)
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
    body = {
        "metadata": {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(args.epoch)), "component": whole},
        "components": sorted((part for id, part in parts.items() if id != root), key=lambda p: p["bom-ref"]),
        "dependencies": sorted(
            ({"ref": parts[id]["bom-ref"], "dependsOn": [parts[dep]["bom-ref"] for dep in deps]} for id, deps in edges.items()),
            key=lambda d: d["ref"]),
    }
    # The same content has the same number.
    number = uuid.uuid5(NAMESPACE, json.dumps(body, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": f"urn:uuid:{number}", "version": 1}
    args.out.write_text(json.dumps(head | body, indent=1) + "\n")
    print(f"{len(body['components'])} crates")


main()
