"""Components on ONNX Runtime, without a bundle."""

from __future__ import annotations

from ltx2rt.backends.onnxruntime import OrtEngine, OrtOptions
from ltx2rt.engine import Array, Engine
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.reference import engine_spec, load_weights


def ort_engine(exported: ExportedGraph, options: OrtOptions | None = None) -> Engine:
    """An ONNX Runtime engine of an exported component, its weights read from the checkpoint as
    float32.
    """
    component = exported.component
    weights: dict[str, Array] = {}
    if component.weight_binding == "initializer":
        weights = load_weights(component.weights, frozenset())
    return OrtEngine(exported.model.SerializeToString(), engine_spec(component), weights, options)
