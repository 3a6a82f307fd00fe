"""Make result files small: what report.py and 'pytest-benchmark compare' read, a line for each benchmark.

python benchmarks/compact.py FILE...
"""

import json
import sys
from pathlib import Path

STATISTICS = ("min", "max", "mean", "stddev", "median", "iqr", "outliers", "ops", "rounds", "iterations")


def main():
    for path in map(Path, sys.argv[1:]):
        data = json.loads(path.read_text())
        if "benchmarks" in data:  # a file of pytest-benchmark
            path.write_text(compact(data))


def compact(data):
    """The text of the file, which is the same if this was done before."""
    data["machine_info"]["cpu"].pop("flags", None)
    lines = []
    for benchmark in data.pop("benchmarks"):
        kept = {name: benchmark[name] for name in ("group", "name", "fullname", "extra_info")}
        statistics = {name: rounded(benchmark["stats"][name], 5) for name in STATISTICS}
        statistics["median"] = rounded(benchmark["stats"]["median"])  # which report.py rounds to three digits
        lines.append(json.dumps({**rounded(kept), "stats": statistics}, separators=(",", ":")))
    head = json.dumps(data, indent=1).removesuffix("\n}")
    return head + ',\n "benchmarks": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def rounded(value, digits=8):
    """The value, a list or a dictionary with so many digits of every float."""
    if isinstance(value, dict):
        return {key: rounded(part, digits) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part, digits) for part in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
