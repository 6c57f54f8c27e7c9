"""Run benchmark cases: `python -m benchmarks.run [--case NAME]... [--no-record]`; kernels on a GPU:
`python -m benchmarks.run kernels`, with options of its own.

A table for people first, one JSON line for each case last. Records are appended to
`benchmarks/results/foundation.jsonl`;
`python -m benchmarks.report` writes `docs/benchmarks.md` from them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.engines import ENGINE_CASES
from benchmarks.hardware import environment

RESULTS = Path(__file__).parent / "results" / "foundation.jsonl"

ALL_CASES = {**CASES, **ENGINE_CASES}


def main() -> None:
    if sys.argv[1:2] == ["kernels"]:
        from benchmarks.kernels.command import main as kernels

        sys.exit(kernels(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=sorted(ALL_CASES), help="default: all")
    parser.add_argument("--no-record", action="store_true", help="don't append to the results file")
    options = parser.parse_args()
    where = environment()
    lines = []
    for name in options.case or ALL_CASES:
        result = ALL_CASES[name]()
        if "skipped" in result:
            print(f"{name:32} skipped: {result['skipped']}")
            continue
        record = {"case": name, **result, "load": os.getloadavg()[0], "environment": where}
        lines.append(json.dumps(record, sort_keys=True, default=str))
        print(f"{name:32} {record['median_s']:8.3f} s", flush=True)
        if not options.no_record:  # at once: a later case may fail
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(lines[-1] + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
