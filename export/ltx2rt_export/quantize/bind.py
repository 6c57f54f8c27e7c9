"""Weights as a graph takes them, straight from values: for checks, tests and benchmarks. Bundles go
through `ltx2rt.bundle.load_weights`, by the same table of formats.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.weights.safetensors import convert
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import weight_inputs
from ltx2rt_export.quantize.rewrites import REWRITES


def bind_weights(
    graph: ExportedGraph,
    precision: str,
    weights: Mapping[str, Array],
    input_scales: Mapping[str, float] | None = None,
) -> dict[str, Array]:
    """One layer's weights for a graph in a precision.

    Args:
        weights: state-dict name -> float32 values, linears `[out, in]`.
        input_scales: module -> activation scale, for precisions that take static ones.
    """
    wanted = weight_inputs(graph)
    bound: dict[str, Array] = {}
    for name, values in weights.items():
        module = name.removesuffix(".weight")
        if f"{module}.weight_scale" in wanted:
            parts = REWRITES[precision].format.encode(values)
            bound |= {f"{module}.{part}": array for part, array in parts.items()}
        else:
            bound[name] = convert(values, "float32", wanted[name][0], name)
    for module, scale in (input_scales or {}).items():
        bound[f"{module}.input_scale"] = np.array([scale], np.float32)
    return {
        name: np.ascontiguousarray(a.T) if name in graph.transposed else a
        for name, a in bound.items()
    }


def bind_inputs(graph: ExportedGraph, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Float32 and integer inputs in the dtypes that a graph takes."""
    return {
        s.name: convert(tensors[s.name], "float32", s.dtype, s.name)
        if tensors[s.name].dtype == np.float32
        else tensors[s.name]
        for s in graph.component.inputs
    }
