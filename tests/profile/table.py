"""Makes tables of what plugin.c has counted; see run.sh."""
import bisect
import collections
import re
import statistics
import sys
from pathlib import Path

folder = Path(sys.argv[1])

symbols = []
for line in (folder / "symbols").read_text().splitlines():
    address, kind, rest = line.split(" ", 2)
    if kind in "tTwW" and int(address, 16):
        name, _, module = rest.partition("\t")
        symbols.append((int(address, 16), name, module.strip("[]") or "vmlinux"))
symbols.sort()
starts = [s[0] for s in symbols]
if not starts:
    sys.exit("the guest's kernel hides its addresses: /proc/kallsyms has only zeros")

parts = {}
current = None
for line in (folder / "counts").read_text().splitlines():
    first, number = line.split()
    if first == "mark":
        current = parts.setdefault(int(number), collections.Counter())
    elif first == "user":
        current["user space"] += int(number)
    else:
        at = bisect.bisect_right(starts, int(first, 16)) - 1
        _, name, module = symbols[at]
        current[f"{module}:{name}"] += int(number)

runs = collections.defaultdict(list)
for line in (folder / "log").read_text().splitlines():
    if line.startswith("counted "):
        _, last, number, _, contender, kind = line.split(" ", 5)
        # What lies between two marks is written at the second.
        counts = parts[int(last)]
        runs[kind, contender].append({k: v / int(number) for k, v in counts.items()})


def median(rows, key):
    return statistics.median(row.get(key, 0) for row in rows)


# What a function is for, by its name; the first that fits. A request on the shield passes
# the block layer twice. Clocks, timers and the scheduler run by the clock, not by the
# request: in an emulated guest, whose time goes on while it is slow, they differ from run to
# run by more than the shield costs.
KINDS = [
    ("device-mapper", re.compile(r"dm_(mod|multipath|service_time):")),
    ("block layer", re.compile(r"vmlinux:.*(bio|blk|mempool|kmem_cache_(alloc|free))")),
    ("clock, timers, scheduler", re.compile(
        r"vmlinux:.*(hpet|ktime|clock|timer|tick|sched|load_avg|psi_|rq|_se\b|entity|idle|rcu|"
        r"timekeep|cpuacct|cgroup|update_|hrtimer|irq|apic|wake)")),
]


def kind_of(name):
    return next((kind for kind, pattern in KINDS if pattern.match(name)), "all else")


print("| direct I/O, one at a time | instructions a request, bare | more on the shield | of these: "
      + " | ".join(kind for kind, _ in KINDS) + " | all else |")
print("|---|---|---|" + "---|" * (len(KINDS) + 1))
for io in dict.fromkeys(k for k, _ in runs):
    bare, shield = runs[io, "bare"], runs[io, "shield"]
    names = set().union(*bare, *shield)
    base = sum(median(bare, n) for n in names)
    rows = sorted(((median(shield, n) - median(bare, n), n) for n in names), key=lambda r: -abs(r[0]))
    more = collections.Counter()
    for difference, name in rows:
        more[kind_of(name)] += difference
    cells = [f"{more[k]:+,.0f} ({more[k] / base:+.1%})" for k in [*(kind for kind, _ in KINDS), "all else"]]
    total = sum(more.values())
    print(f"| {io} | {base:,.0f} | {total:+,.0f} ({total / base:+.1%}) | " + " | ".join(cells) + " |")
    with open(folder / (io.replace(" ", "-") + ".txt"), "w") as file:
        for difference, name in rows:
            print(f"{difference:12,.0f} {median(bare, name):12,.0f} {median(shield, name):12,.0f}  "
                  f"{name} ({kind_of(name)})", file=file)
