"""What engine cases build with: a builder, what it took, and a block with random weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

SHAPE = "768x512x121"
TARGETS = ("sm89", "sm120")


def make_builder(cache: Path, precision: str, **config: Any) -> Any:
    """A TensorRT-RTX builder for `SHAPE`, with an empty cache."""
    from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS
    from ltx2rt_export.build_config import BuildConfig
    from ltx2rt_export.engines.build import open_builder
    from ltx2rt_export.engines.profile_request import ProfileRequest
    from ltx2rt_export.engines.shapes import parse_shapes

    given = {"backend": "tensorrt-rtx", "target": TARGETS, **config}
    made = BuildConfig(precision=precision, shapes=(SHAPE,), cache_dir=cache, **given)
    request = ProfileRequest(
        shapes=parse_shapes(made.shapes), max_batch=1, factors=VIDEO_SCALE_FACTORS, options={}
    )
    return open_builder(made, request)


def measured(
    builder: Any, graph: Any, precision: str, weights: Any, folder: Path
) -> dict[str, Any]:
    """Build one engine; what it took and what is in it."""
    from ltx2rt.cli.inspect import inspect_engine
    from ltx2rt.progress import Job

    start = time.perf_counter()
    entry = builder.build(graph, precision, weights, folder, Job())
    seconds = time.perf_counter() - start
    report = inspect_engine(folder / entry.file)
    return {
        "build_s": seconds,
        "peak_memory_bytes": report["peak_memory_bytes"],
        "engine_bytes": report["engine_bytes"],
        "engine_sha256": report["engine_sha256"],
        "attentions": report["attentions"],
        "fused_attentions": report["kernels"]["fused_attentions"],
        "findings": report["findings"],
    }


def total(engines: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """One record: seconds and bytes add up (a shared engine counts once), memory is the largest."""
    from ltx2rt_export.engines.worker import peak_memory_bytes

    distinct = {e["engine_sha256"]: e for e in engines.values()}
    own = peak_memory_bytes()
    return {
        "median_s": sum(e["build_s"] for e in engines.values()),
        "peak_memory_bytes": max(own, *(e["peak_memory_bytes"] for e in engines.values())),
        "engine_bytes": sum(e["engine_bytes"] for e in distinct.values()),
        "attentions": sum(e["attentions"] for e in engines.values()),
        "fused_attentions": sum(e["fused_attentions"] for e in engines.values()),
        "findings": sorted({f for e in engines.values() for f in e["findings"]}),
        "engines": engines,
        **more,
    }


def random_block(precision: str) -> tuple[Any, dict[str, Any]]:
    """The graph of an LTX-2.3 block, and random weights for it."""
    from benchmarks.real_size import LTX23, transformer_components
    from ltx2rt_export.quantize import export_in_precision

    graph = export_in_precision(transformer_components(LTX23)[1], precision)
    return graph, random_weights(graph)


def random_weights(graph: Any) -> dict[str, Any]:
    """Weights of a graph as engines take them, about as large as real ones."""
    import numpy as np

    from ltx2rt.weights.safetensors import convert
    from ltx2rt_export.graph import DTYPE_NAMES

    names = {spec.name for spec in graph.component.inputs}
    rng = np.random.default_rng(0)
    weights = {}
    for value in graph.model.graph.input:
        if value.name in names:
            continue
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value for d in tensor.shape.dim)
        dtype = DTYPE_NAMES[tensor.elem_type]
        if dtype == "float8_e4m3fn":  # codes of ordinary numbers, neither NaN nor zero
            weights[value.name] = rng.integers(0x20, 0x60, shape, np.uint8)
        elif dtype == "int8":
            weights[value.name] = rng.integers(-128, 128, shape, np.int8)
        elif dtype == "int4":  # two codes in a byte
            packed = (*shape[:-1], shape[-1] // 2)
            weights[value.name] = rng.integers(0, 256, packed, np.uint8)
        else:
            values = rng.standard_normal(shape, np.float32) / np.float32(max(shape[0], 1) ** 0.5)
            weights[value.name] = convert(values, "float32", dtype, value.name)
    return weights
