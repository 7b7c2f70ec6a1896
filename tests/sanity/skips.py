"""Every spec that csi-sanity left out has a written reason: skips.py REPORT.json all|controller"""
import json
import sys
from pathlib import Path

report, mode = sys.argv[1:]
lines = Path(__file__).with_name("skips.tsv").read_text().splitlines()
reasons = dict(line.split("\t", 1) for line in lines if line and not line.startswith("#"))
used, unexplained = set(), []
for spec in json.loads(Path(report).read_text())[0]["SpecReports"]:
    if spec["State"] != "skipped":
        continue
    name = " ".join([*spec["ContainerHierarchyTexts"], spec["LeafNodeText"]])
    message = spec.get("Failure", {}).get("Message", "")
    if message in reasons:
        used.add(message)
    # Run by `all`, in a guest.
    elif not (mode == "controller" and name.startswith("Node Service")):
        unexplained.append(f"{name}: {message or 'no message'}")
for name in unexplained:
    print(f"skipped without a reason in skips.tsv: {name}")
for message in sorted(reasons.keys() - used):
    print(f"note: nothing was skipped for {message!r} any more; remove it from skips.tsv")
sys.exit(bool(unexplained))
