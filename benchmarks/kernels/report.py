"""The kernel section of `docs/benchmarks.md`, from the newest record of every case and variant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "kernels.jsonl"


def section(results: Path = RESULTS) -> list[str]:
    """Lines of the section; without records, how to make them."""
    lines = ["", "## Kernels", ""]
    if not results.exists():
        return [*lines, "Not measured: `python -m benchmarks.run kernels`, on one NVIDIA GPU."]
    newest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for text in results.read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        gpu = record["environment"]["gpu"]["name"]
        newest[gpu, record["case"], record["variant"]] = record
    lines += [
        "Batch 1, 32 heads, bfloat16; median of interleaved runs, L2 cold. The error is relative",
        "RMS against float32; roofline: share of the data sheet's least time.",
        "",
        "| GPU | case | variant | us | p10, p90 | TFLOP/s | GB/s | roofline | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [_row(gpu, record) for (gpu, _, _), record in newest.items()]


def _row(gpu: str, record: dict[str, Any]) -> str:
    start = f"| {gpu} | {record['case']} | {record['variant']} |"
    if "skipped" in record:
        return f"{start} {record['skipped']} | | | | | |"
    spread = f"{record['p10_s'] * 1e6:.1f}, {record['p90_s'] * 1e6:.1f}"
    tflops = f"{record['tflops']:.0f}" if "tflops" in record else ""
    roofline = f"{100 * record['roofline']:.0f} %" if "roofline" in record else ""
    note = "" if record["verified"] else " unverified"
    return (
        f"{start} {record['median_s'] * 1e6:.1f} | {spread} | {tflops} "
        f"| {record['gb_per_s']:.0f} | {roofline} | {record['rel_rms']:.1e}{note} |"
    )
