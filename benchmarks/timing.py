"""Medians of repeated runs."""

from __future__ import annotations

import os
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
    """Wall time of whole processes, after one warm-up, their CPU time and their peak memory."""
    seconds, cpu_seconds, peaks = [], [], []
    for i in range(repeats + 1):
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        if i:
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(usage.ru_utime + usage.ru_stime)
            peaks.append(usage.ru_maxrss * 1024)
    return {
        **percentiles(seconds),
        "cpu_s": statistics.median(cpu_seconds),
        "peak_memory_bytes": max(peaks),
    }
