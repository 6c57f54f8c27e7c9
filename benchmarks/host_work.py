"""Work of the host beside the GPU, in seconds, bytes and calls, without a GPU: what numpy does on
this machine, and what the real device code asks of the simulated GPU at 1920x1088x121.

`python -m benchmarks.host_work [--no-record]` appends a record to `benchmarks/results/
host_work.jsonl`; `python -m benchmarks.report` writes the table. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.hardware import environment
from benchmarks.host_row import Row

RESULTS = Path(__file__).parent / "results" / "host_work.jsonl"


def table() -> list[str]:
    """The newest record, as lines of Markdown."""
    if not RESULTS.exists():
        return []
    record = json.loads(RESULTS.read_text(encoding="utf-8").splitlines()[-1])
    where = record["environment"]
    return [
        "## Work of the host beside the GPU",
        "",
        "Counted and timed without a GPU: `numpy` is what runs on the host, `simulated` the real "
        "device code over the simulated GPU of `tests/simulator`, whose own work is in those "
        "seconds. 32,640 tokens are a clip of 1920x1088x121. `python -m benchmarks.host_work`.",
        "",
        "| what | measured | bound | | how |",
        "|---|---|---|---|---|",
        *(Row(**row).line() for row in record["rows"]),
        "",
        f"{where['commit']}, {where['date']}, {where['cpu']}, {where['cpus']} cores, load "
        f"{record['load']:.0f}; CPU seconds, medians of {record['runs']}.",
    ]


def main() -> None:
    from benchmarks import host_numpy, host_simulated

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-record", action="store_true", help="don't append to the results file")
    parser.add_argument("--runs", type=int, default=5, help="of what is timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows: list[Row] = [
            *host_numpy.rows(options.runs),
            *host_simulated.rows(Path(folder)),
        ]
    print("\n".join(row.line() for row in rows))
    record: dict[str, Any] = {
        "case": "host-work",
        "rows": [asdict(row) for row in rows],
        "runs": options.runs,
        "load": os.getloadavg()[0],
        "environment": environment(),
    }
    if not options.no_record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, sort_keys=True, default=str) + "\n")
    sys.exit(not all(row.holds for row in rows))


if __name__ == "__main__":
    main()
