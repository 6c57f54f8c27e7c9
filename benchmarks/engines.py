"""Engine cases: real-size engines built without a GPU, and the same block timed on one.

Each case runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.engine_builds import make_builder, measured, random_block, total

#: precisions in which a block is built with its weights as inputs and as constants
WEIGHT_CASES = ("bf16", "fp8", "int8-wo", "int4-wo")


def in_own_process(name: str) -> Callable[[], dict[str, Any]]:
    """A case that runs as `python -m benchmarks.engines NAME`."""

    def run() -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.engines", name]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
        return result

    return run


def transformer() -> dict[str, Any]:
    """Head, block and tail of LTX-2.3 in BF16 and FP8; export is not timed here."""
    from benchmarks.real_size import LTX23, transformer_components
    from ltx2rt_export.engines.weights import fold_transposes
    from ltx2rt_export.quantize import component_precision, export_in_precision

    engines = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for component in transformer_components(LTX23):
            for asked in ("bf16", "fp8"):
                precision = component_precision(component.name, asked)
                graph = fold_transposes(export_in_precision(component, precision))
                builder = make_builder(folder / "cache", asked)
                engines[f"{component.name}-{asked}"] = measured(
                    builder, graph, precision, None, folder
                )
    return total(engines)


def block_weights(precision: str) -> dict[str, Any]:
    """One LTX-2.3 block: weights as inputs, and (random) as constants."""
    from ltx2rt_export.engines.weights import holding_weights

    graph, weights = random_block(precision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        builder = make_builder(folder / "cache", precision)
        bound = measured(builder, graph, precision, None, folder / "input")
        builder = make_builder(folder / "cache", precision, weights="constant")
        held = holding_weights(graph)
        constant = measured(builder, held, precision, weights, folder / "constant")
    return total({"input": bound}, constant=constant)


def everything(generation: str) -> dict[str, Any]:
    """Every component of a released model, its Gemma too, at real size in BF16, from sparse files:
    export and engines.
    """
    from benchmarks.sparse_model import write_sparse_model
    from ltx2rt_export.catalog import rows_of
    from ltx2rt_export.checkpoint import open_model
    from ltx2rt_export.engines.weights import fold_transposes
    from ltx2rt_export.quantize import component_precision, export_in_precision

    engines, export_s = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = open_model(**write_sparse_model(folder / "model", generation))
        components = [row.make(files) for row in rows_of(files)]
        builder = make_builder(folder / "cache", "bf16")
        options = {c.name: c.options for c in components}
        profiles = dataclasses.replace(builder.profiles, options=options)
        builder = dataclasses.replace(builder, profiles=profiles)
        for component in components:
            start = time.perf_counter()
            precision = component_precision(component.name, "bf16")
            graph = fold_transposes(export_in_precision(component, precision))
            export_s[component.name] = time.perf_counter() - start
            engines[component.name] = measured(builder, graph, precision, None, folder)
    return total(engines, export_s=export_s)


def block_on_gpu() -> dict[str, Any]:
    """The block of `block_weights` timed on this machine's GPU, in every way that it can hold its
    weights.
    """
    from ltx2rt.device.cuda import local_gpu
    from ltx2rt.errors import UnsupportedError

    try:
        local_gpu("this case")
    except UnsupportedError as error:
        return {"skipped": str(error)}
    from benchmarks.block_on_gpu import compare

    return compare()


LOCAL = {
    "transformer": transformer,
    **{f"block-weights-{p}": partial(block_weights, p) for p in WEIGHT_CASES},
    "everything-2": lambda: everything("2"),
    "everything-2.3": lambda: everything("2.3"),
    "everything-2.5": lambda: everything("2.5"),
    "block-on-gpu": block_on_gpu,
}
ENGINE_CASES = {
    "engines-ltx23-transformer-768x512x121": in_own_process("transformer"),
    **{
        f"engines-ltx23-block-weights-{p}": in_own_process(f"block-weights-{p}")
        for p in WEIGHT_CASES
    },
    "engines-ltx2-everything-bf16": in_own_process("everything-2"),
    "engines-ltx23-everything-bf16": in_own_process("everything-2.3"),
    "engines-ltx25-everything-bf16": in_own_process("everything-2.5"),
    "engines-ltx23-block-on-gpu": in_own_process("block-on-gpu"),
}

if __name__ == "__main__":
    print(json.dumps(LOCAL[sys.argv[1]]()))
