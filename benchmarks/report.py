"""Write `docs/benchmarks.md` from the newest record of every case. Tables are generated, never
typed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cpu_blocks import table as cpu_table
from benchmarks.engines import WEIGHT_CASES
from benchmarks.host_work import table as host_table
from benchmarks.kernels.report import section as kernel_section
from benchmarks.quality import table as quality_table
from benchmarks.run import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "benchmarks.md"

#: case -> what it measures and the bound that the project holds itself to
ROWS = {
    "cli-help": ("`ltx2rt --help`, whole process", "0.3 s"),
    "cli-generate-help": ("`ltx2rt generate --help`, whole process", "0.15 s"),
    "cli-pipelines": ("`ltx2rt pipelines`, whole process", "0.15 s"),
    "open-bundle": ("`import ltx2rt` and open the tiny bundle, whole process", "1 s"),
    "open-ltx23-headers": (
        "open the files of LTX-2.3 and Gemma at real size: headers read, tensors matched",
        "none",
    ),
    "export-ltx23-transformer": (
        "real-size LTX-2.3 transformer (head, block, tail) to ONNX from `meta`",
        "120 s, 3 GB",
    ),
    "engines-ltx23-transformer-768x512x121": (
        "TensorRT-RTX engines of it: BF16 and FP8, each for SM89 and SM120, buckets of both stages",
        "60 s, 3 GB, 40 MB",
    ),
    **{
        f"engines-ltx23-block-weights-{precision}": (
            f"TensorRT-RTX engine of one LTX-2.3 block, {precision}, weights as inputs; constants "
            "beside it",
            "none",
        )
        for precision in WEIGHT_CASES
    },
    "engines-ltx2-everything-bf16": (
        "TensorRT-RTX engines of every component of LTX-2 with Gemma 3 12B at real size, BF16",
        "none",
    ),
    "engines-ltx23-everything-bf16": (
        "TensorRT-RTX engines of every component of LTX-2.3 with Gemma 3 12B at real size, BF16",
        "none",
    ),
    "engines-ltx25-everything-bf16": (
        "TensorRT-RTX engines of every component of LTX-2.5 with Gemma 4 12B at real size, BF16",
        "none",
    ),
    "tiny-distilled-256x384-25f": (
        "tiny distilled pipeline 256x384, 25 frames, decoded; ONNX Runtime",
        "faster than PyTorch",
    ),
    "generate-256x384-49f": (
        "`ltx2rt generate` of a tiny distilled clip 256x384, 49 frames, whole process: loading and "
        "encoding included",
        "none",
    ),
    "video-decoder-eighth": (
        "video decoder of LTX-2.3 at 1/8 of its width, 384x256, 25 frames, CPU seconds of one "
        "thread",
        "faster than PyTorch",
    ),
    "video-decoder-quarter": (
        "the same at 1/4, 256x192, 17 frames",
        "faster than PyTorch",
    ),
}


def newest() -> dict[str, dict[str, Any]]:
    """The last record of every case."""
    records: dict[str, dict[str, Any]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        records[record["case"]] = record
    return records


def remarks(record: dict[str, Any]) -> str:
    """What else a record says."""
    parts = []
    if "p10_s" in record:
        parts.append(
            f"p10 {record['p10_s']:.3f}, p90 {record['p90_s']:.3f} over {record['runs']} runs"
        )
    if "cpu_s" in record:
        parts.append(f"{record['median_s']:.3f} s on the clock")
    if "peak_memory_bytes" in record:
        parts.append(
            f"peak memory {record['peak_memory_bytes'] / 1e9:.2f} GB"
            + (f", graphs {record['graph_bytes'] / 1e3:.0f} kB" if "graph_bytes" in record else "")
        )
    if "engine_bytes" in record:
        parts.append(
            f"engines {record['engine_bytes'] / 1e6:.1f} MB, attentions fused "
            f"{record['fused_attentions']} of {record['attentions']}"
        )
    if "constant" in record:
        other = record["constant"]
        parts.append(
            f"as constants {other['build_s']:.1f} s, {other['peak_memory_bytes'] / 1e9:.2f} GB, "
            f"{other['engine_bytes'] / 1e6:.0f} MB"
        )
    if "ratio" in record:
        parts.append(
            f"PyTorch reference {record['torch']['median_s']:.3f} s, interleaved: ratio "
            f"{record['ratio']:.2f}; parity gate: they differ by {record['gate_rel_l2']:.1e}"
        )
    if "load" in record:
        parts.append(f"load {record['load']:.0f}")
    return "; ".join(parts)


def table() -> str:
    """The page."""
    records = newest()
    lines = [
        "# Benchmarks",
        "",
        "Made by `make benchmarks` (`python -m benchmarks.run`, `python -m benchmarks.report`) "
        "from `benchmarks/results/foundation.jsonl`.",
        "Medians; whole processes where said. Nothing here ran on a GPU.",
        "",
        "| what | measured | bound | remarks | commit |",
        "|---|---|---|---|---|",
    ]
    for case, (what, bound) in ROWS.items():
        record = records.get(case)
        if record is None:
            command = f"python -m benchmarks.run --case {case}"
            lines.append(f"| {what} | not measured: `{command}` | {bound} | | |")
            continue
        where = record["environment"]
        shared = "cpu_s" in record  # seconds on a clock are those of whatever else ran
        took = f"{record['cpu_s']:.3f} CPU s" if shared else f"{record['median_s']:.3f} s"
        lines.append(
            f"| {what} | {took} | {bound} | {remarks(record)} "
            f"| {where['commit']}, {where['date']}, {where['cpu']} |"
        )
    if host := host_table():
        lines += ["", *host]
    if quality := quality_table():
        lines += ["", *quality]
    if blocks := cpu_table():
        lines += ["", *blocks]
    if records:
        where = next(reversed(records.values()))["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
        lines += [
            "",
            f"Machines: {where['cpus']} cores; Python {where['python']}; {versions}.",
        ]
    return "\n".join([*lines, *kernel_section()]) + "\n"


def main() -> None:
    TARGET.write_text(table(), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
