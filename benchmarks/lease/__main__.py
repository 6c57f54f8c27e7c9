"""Run the steps of a lease: `benchmarks/lease.sh`; a table last, results as they come in `$OUT`.

A step is a process of its own, so that one that fails, hangs or loses the GPU ends alone. A line of
its output that is a JSON object is a result; the last line of text is what the table shows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lease.pack import install
from benchmarks.lease.steps import NAMES, STEPS, Step, filled

#: of a lent machine's ten minutes a command
BUDGET_S = 520.0
#: what a step needs at least to be begun
LEAST_S = 10.0
#: width of what the table says of a step
SHOWN = 150
PACK = Path(__file__).parent / "pack"


def main(arguments: Sequence[str]) -> int:
    """Run; 0: every step that could run did, 1: one failed."""
    parser = argparse.ArgumentParser(prog="benchmarks/lease.sh", description=__doc__)
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="for everything")
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="STEP", help=", ".join(NAMES)
    )
    parser.add_argument("--pack", type=Path, default=PACK, help="made by benchmarks.lease.pack")
    options = parser.parse_args(arguments)
    out = Path(os.environ.get("OUT") or "lease-results")
    out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + options.budget_s
    rows = []
    with tempfile.TemporaryDirectory(prefix="lease-") as work:
        site = install(options.pack, Path(work) / "site")
        for step in STEPS:
            if options.only and step.name not in options.only:
                continue
            places = {"pack": str(options.pack), "out": str(out), "work": work}
            limit_s = min(step.limit_s, until - time.monotonic())
            row = run(step, filled(step, **places), limit_s, site)
            rows.append(row)
            with (out / "lease.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
            sys.stderr.write(f"{step.name}: {row['state']}\n")
    text = table(rows)
    (out / "lease.txt").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 1 if any(row["state"] == "failed" for row in rows) else 0


def run(step: Step, command: Sequence[str], limit_s: float, site: Path | None) -> dict[str, Any]:
    """One step's record: state (ran, failed, stopped, skipped), seconds, results, last words."""
    row: dict[str, Any] = {"step": step.name, "question": step.question, "results": []}
    environment = dict(os.environ)
    if site is not None:
        environment["PYTHONPATH"] = os.pathsep.join(
            [environment.get("PYTHONPATH", ""), str(site)]
        ).strip(os.pathsep)
    reason = why_not(step, command, limit_s, site)
    if reason is not None:
        return {**row, "state": "skipped", "says": reason, "seconds": 0.0}
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_s)
        state = {0: "ran", step.cannot: "skipped"}.get(process.returncode, "failed")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        state = "stopped"
    results, words = parsed(output)
    return {
        **row,
        "state": state,
        "seconds": round(time.monotonic() - start, 1),
        "results": results,
        "says": words[-1] if words else "",
        "tail": words[-30:] if state in ("failed", "stopped") else [],
    }


def why_not(step: Step, command: Sequence[str], limit_s: float, site: Path | None) -> str | None:
    """Why a step is not begun; None if it can be."""
    if limit_s < LEAST_S:
        return "the time is over"
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not here"
    if step.module is not None and not _is_there(step.module, site):
        return f"{step.module} is not installed, and the pack has no wheel of it"
    return None


def _is_there(module: str, site: Path | None) -> bool:
    if site is not None and (site / module.replace(".", "/")).exists():
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def parsed(output: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Results (lines that are JSON objects) and words (all others that are not empty)."""
    results, words = [], []
    for line in output.splitlines():
        try:
            found = json.loads(line) if line.startswith("{") else None
        except ValueError:
            found = None
        if isinstance(found, dict):
            results.append(found)
        elif line.strip():
            words.append(line.strip())
    return results, words


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a step, short enough for what a lent machine gives back."""
    lines = [f"{'step':12} {'state':8} {'s':>6}  says"]
    for row in rows:
        lines.append(
            f"{row['step']:12} {row['state']:8} {row['seconds']:6.1f}  {row['says'][:SHOWN]}"
        )
        lines += [f"{'':30}{line[:SHOWN]}" for line in row.get("tail", ())[-5:-1]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
