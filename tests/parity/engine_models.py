"""Transformer blocks and an engine builder for tests that build real TensorRT-RTX engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.real_size import LTX23, transformer_components
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.component import Component
from ltx2rt_export.engines.build import EngineBuilder, open_builder
from ltx2rt_export.engines.profile_request import ProfileRequest
from ltx2rt_export.engines.shapes import parse_shapes
from ltx2rt_export.engines.weights import fold_transposes
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize import apply_precision
from tests.parity.exports import exported_in

#: LTX-2.3 with two heads of the real sizes: attention fuses only for head sizes that kernels have
TINY = dataclasses.replace(
    LTX23,
    heads=2,
    num_layers=2,
    streams=tuple(
        dataclasses.replace(s, width=2 * s.head_dim, context_dim=2 * s.head_dim)
        for s in LTX23.streams
    ),
)
MODELS = {"tiny": TINY, "real": LTX23}


@cache
def transformer_part(model: str, name: str) -> Component:
    """Head, block or tail of a model, on `meta`."""
    return next(c for c in transformer_components(MODELS[model]) if c.name == name)


@cache
def part_graph(model: str, name: str, precision: str) -> ExportedGraph:
    """Its graph as engines take it; traced once a session and model."""
    if PRECISIONS[precision].format is not None:
        return apply_precision(part_graph(model, name, "bf16"), precision)
    return fold_transposes(exported_in(transformer_part(model, name), precision))


def builder(
    cache_dir: Path,
    *shapes: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **config: Any,
) -> EngineBuilder:
    """A TensorRT-RTX builder for these clips."""
    config = {"backend": "tensorrt-rtx", "shapes": shapes, "cache_dir": cache_dir, **config}
    made = BuildConfig(**config)
    request = ProfileRequest(
        shapes=parse_shapes(made.shapes),
        max_batch=made.max_batch,
        factors=VIDEO_SCALE_FACTORS,
        options=options or {},
    )
    return open_builder(made, request)
