"""Medians of repeated runs."""

from __future__ import annotations

import statistics
import subprocess
import time

REPEATS = 7


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, p10 and p90."""
    ordered = sorted(seconds)
    return {
        "median_s": statistics.median(ordered),
        "p10_s": ordered[len(ordered) // 10],
        "p90_s": ordered[-1 - len(ordered) // 10],
        "runs": len(ordered),
    }


def timed_processes(command: list[str], repeats: int = REPEATS) -> dict[str, float]:
    """Wall time of whole processes, after one warm-up."""
    seconds = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        if i:
            seconds.append(time.perf_counter() - start)
    return percentiles(seconds)
