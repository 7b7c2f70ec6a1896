#!/usr/bin/env python3
"""Plain manifests, one for each example in the chart's schema.

    deploy/render.py HELM            write deploy/manifests/NAME.yaml
    deploy/render.py --check HELM    complain if they are not what the chart gives
    deploy/render.py --check         the same without Helm: by the checksum of what they are made of
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE / "chart"
MANIFESTS = HERE / "manifests"
NAMESPACE = "rds-csi"
# Not that of the Helm at hand, so that all give the same; the chart asks only that it is not too old.
KUBERNETES = "1.36.0"
# The shim's and the agent's directories of the host are more than any other level allows.
NAMESPACE_OBJECT = f"""---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: privileged
"""


def examples():
    schema = json.loads((CHART / "values.schema.json").read_text())
    names, values = schema["exampleNames"], schema["examples"]
    if len(names) != len(values):
        sys.exit("values.schema.json: exampleNames and examples differ in number")
    return dict(zip(names, values))


def checksum():
    """Of everything that a manifest is made of."""
    digest = hashlib.sha256()
    for file in [HERE / "render.py", *sorted(f for f in CHART.rglob("*") if f.is_file())]:
        digest.update(str(file.relative_to(HERE)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def header(name):
    return (
        f"# Made by `make manifests` from deploy/chart, with the values of the example\n"
        f"# \"{name}\" in values.schema.json. Change those, not this file.\n"
        f"# checksum of the chart: {checksum()}\n"
    )


def render(helm, name, values):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        command = [helm, "template", "rds-csi", CHART, "--namespace", NAMESPACE]
        command += ["--kube-version", KUBERNETES, "--values", file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"the example {name} does not render:\n{done.stderr}")
    # Nobody applies these with Helm.
    text = done.stdout.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")
    return header(name) + NAMESPACE_OBJECT + text


def main():
    arguments = sys.argv[1:]
    check = arguments[:1] == ["--check"]
    helm = arguments[-1] if len(arguments) > check else None
    if not check and helm is None:
        sys.exit(__doc__)
    all_examples = examples()
    stale = {file.name for file in MANIFESTS.glob("*.yaml")} - {f"{name}.yaml" for name in all_examples}
    for name, values in all_examples.items():
        file = MANIFESTS / f"{name}.yaml"
        if not check:
            MANIFESTS.mkdir(exist_ok=True)
            file.write_text(render(helm, name, values))
            continue
        found = file.read_text() if file.exists() else ""
        if found != render(helm, name, values) if helm else not found.startswith(header(name)):
            stale.add(file.name)
    if not check:
        for name in stale:
            (MANIFESTS / name).unlink()
    elif stale:
        sys.exit(f"not what the chart gives: {', '.join(sorted(stale))}; run `make manifests`")


main()
