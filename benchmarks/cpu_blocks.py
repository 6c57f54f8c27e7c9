"""Blocks of the transformer on a CPU: every precision, our PyTorch reference and diffusers; time
and memory at several widths and token counts, a process each, in turn.

`python -m benchmarks.cpu_blocks [WIDTH:TOKENS[:ROUNDS[:CALLS[:VARIANT,...]]] ...]` appends a record
for each to `benchmarks/results/cpu.jsonl`, of all variants or of these; `python -m
benchmarks.report` writes the table, in which the newest measurement of a variant on the newest
processor stands. A process that takes `LIMIT` CPU seconds is stopped, and the record says so.
Parity of what is timed is tested in `tests/parity/test_quantize_graphs.py` and
`test_layer_engines.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cpu_block import TEXT
from benchmarks.hardware import environment
from benchmarks.real_size import LTX23, block_component
from ltx2rt.env import cache_dir
from ltx2rt.weights.codecs.engine_formats import FP8
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt_export.custom_ops.linear_attention import use_linear_attention
from ltx2rt_export.custom_ops.token_chunks import chunk_feed_forward
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache
from ltx2rt_export.engines.weights import holding_layers
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.component_graph import rewrite_graph
from ltx2rt_export.quantize.linears import weight_inputs
from ltx2rt_export.quantize.stored_floats import store_weights
from ltx2rt_export.unmasked import without_masks

RESULTS = Path(__file__).parent / "results" / "cpu.jsonl"

HEADS, REAL_WIDTH = LTX23.heads, LTX23.streams[0].width

#: FP8 is emulated on a CPU: no use but tests
OURS = tuple(n for n, row in PRECISIONS.items() if row.on_cpu and row.format is not FP8)
INSIDE = f"{OURS[0]} inside"
OTHERS = ("eager", "diffusers float32", "diffusers bfloat16", "diffusers float32 compiled")
VARIANTS = (OURS[0], INSIDE, *OURS[1:], *OTHERS)

DEFAULT = ("512:500", "512:2000", "1024:500", "1024:2000", "4096:256")
ROUNDS, CALLS = 3, 2

#: CPU seconds of one process, which makes its model, calls it `CALLS` times and, if asked for,
#: compiles it; and how long it may take on a machine that others use
LIMIT, LIMIT_WALL = 300, 1800


def write_graphs(width: int, folder: Path, variants: Collection[str]) -> None:
    """The block without masks in some precisions, and what a process needs to know about it."""
    cache = GraphCache(EngineCache(cache_dir()))
    plain = without_masks(cache.export(block_component(width)))
    assert plain is not None
    for name in variants:
        row = PRECISIONS.get(name)
        graph = plain if row is None else rewrite_graph(plain, name)
        if row is not None and row.stored is not None:
            graph = store_weights(graph, row.stored)
        weights = weight_inputs(graph)
        graph = chunk_feed_forward(use_linear_attention(graph))
        inside = row is None or row.inside
        if inside:
            graph = holding_layers(graph)
        _write(graph, weights, folder / name, inside=inside)


def _write(
    graph: ExportedGraph, weights: Mapping[str, object], path: Path, *, inside: bool
) -> None:
    path.with_name(f"{path.name}.onnx").write_bytes(graph.model.SerializeToString())
    about = {
        side: [[s.name, s.dtype, list(s.shape)] for s in getattr(graph.component, side)]
        for side in ("inputs", "outputs")
    }
    document = {**about, "weights": weights, "inside": inside}
    path.with_name(f"{path.name}.json").write_text(json.dumps(document))


def measure(
    width: int, tokens: int, rounds: int, calls: int, variants: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Variant -> the median of its rounds' CPU seconds, and its memory."""
    variants = [v for v in variants if "diffusers" not in v or _has_diffusers()]
    found: dict[str, list[dict[str, Any]]] = {v: [] for v in variants}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / str(width)
        folder.mkdir()
        if ours := [v for v in variants if v not in OTHERS]:
            write_graphs(width, folder, ours)
        for _ in range(rounds):
            for variant in variants:
                results = found[variant]
                if not any("stopped" in result for result in results):
                    results.append(_one(folder, variant, tokens, calls))
    return {variant: _row(results) for variant, results in found.items()}


def _one(folder: Path, variant: str, tokens: int, calls: int) -> dict[str, Any]:
    """What one process measured; `stopped` says after what it was, if it did not finish."""
    command = [sys.executable, "-m", "benchmarks.cpu_block", str(folder), variant, str(tokens)]
    try:
        done = subprocess.run(
            [*command, str(calls), str(LIMIT)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=LIMIT_WALL,
        )
    except subprocess.TimeoutExpired:
        return {"stopped": f"{LIMIT_WALL} s"}
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return {"stopped": f"{LIMIT} CPU s"}
    done.check_returncode()
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _row(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of rounds and the most memory; of a variant that was stopped, after what."""
    stopped = [result["stopped"] for result in results if "stopped" in result]
    if stopped:
        return {"stopped": stopped[0]}
    return {
        "cpu_s": statistics.median(r["cpu_s"] for r in results),
        **{
            key: max(r[key] for r in results)
            for key in ("held_bytes", "peak_bytes", "before_cpu_s")
        },
    }


def _has_diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def table() -> list[str]:
    """The newest record of every size, as lines of Markdown."""
    if not RESULTS.exists():
        return []
    lines_of = RESULTS.read_text(encoding="utf-8").splitlines()
    records: dict[str, dict[str, Any]] = {}
    notes: dict[str, list[str]] = {}
    for record in map(json.loads, lines_of):
        case, where = record["case"], record["environment"]
        known = records.get(case)
        same = known is not None and known["environment"]["cpu"] == where["cpu"]
        rows = known["rows"] if known is not None and same else {}
        records[case] = {**record, "rows": rows | record["rows"]}
        if not same:
            notes[case] = []
        notes[case].append(
            f"{', '.join(record['rows'])} in {record['rounds']} rounds, {where['commit']}, "
            f"{where['date']}, load {record['load']:.0f}, {where['cpu']} with {where['extensions']}"
        )
    lines = [
        "## One block on a CPU",
        "",
        f"LTX-2.3's block ({HEADS} heads, audio of half the width; {REAL_WIDTH} is the real one), "
        f"one pass without masks, {TEXT} tokens of text, one thread: CPU seconds of a call, memory "
        "of the process at the most during calls, in brackets what it held before (weights, "
        "inputs, libraries). A process each, in turn; medians. `inside`: `--weights constant`; "
        "`eager`: our PyTorch reference; `compiled`: `torch.compile`, compiled before. A process "
        f"is stopped after {LIMIT} CPU seconds. `python -m benchmarks.cpu_blocks WIDTH:TOKENS`.",
        "",
        f"| variant | {' | '.join(records)} |",
        f"|---|{'---|' * len(records)}",
    ]
    for variant in VARIANTS:
        cells = []
        for record in records.values():
            row = record["rows"].get(variant)
            cells.append("-" if row is None else _cell(row))
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    made = "; ".join(f"{case}: {' and '.join(each)}" for case, each in notes.items())
    return [*lines, "", f"{made}. Two cores that other work shared."]


def _cell(row: Mapping[str, Any]) -> str:
    if "stopped" in row:
        return f"not in {row['stopped']}"
    return f"{row['cpu_s']:.3f} s, {row['peak_bytes'] / 1e9:.2f} GB ({row['held_bytes'] / 1e9:.2f})"


def main() -> None:
    for case in sys.argv[1:] or DEFAULT:
        width, tokens, *given = case.split(":")
        rounds, calls = (int(x) for x in (*given[:2], *(ROUNDS, CALLS)[len(given[:2]) :]))
        variants = given[2].split(",") if len(given) > 2 else VARIANTS
        if unknown := set(variants) - set(VARIANTS):
            raise SystemExit(f"no variants: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
        record = {
            "case": f"{width} wide, {tokens} tokens",
            "rows": measure(int(width), int(tokens), rounds, calls, variants),
            "rounds": rounds,
            "load": os.getloadavg()[0],
            "environment": {**environment(), "extensions": extensions()},
        }
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, sort_keys=True, default=str) + "\n")
        print(json.dumps(record, default=str))


def extensions() -> str:
    """What the CPU has of the instructions that decide the speed of products."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return ", ".join(w for w in wanted if w in flags)


if __name__ == "__main__":
    main()
