"""How an engine gets its weights: as inputs bound by name, or as constants inside it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from ltx2rt.engine import Array
from ltx2rt_export.graph import (
    INJECTED,
    ExportedGraph,
    fold_weight_transposes,
    inputs_to_initializers,
)

#: name of the file that holds a graph's constants while its engine is built
DATA_FILE = "weights.bin"


def fold_transposes(graph: ExportedGraph) -> ExportedGraph:
    """The graph with injected weights laid out `[in, out]` where it transposed them itself: as
    inputs of an engine, each such weight would cost a kernel on every call.
    """
    if graph.component.weight_binding == "input":
        return graph
    model = weights_as_inputs(graph.model)
    folded = fold_weight_transposes(model, graph.weights)
    inputs_to_initializers(model, graph.weights)
    return dataclasses.replace(graph, model=model, transposed=graph.transposed | folded)


def holding_weights(graph: ExportedGraph) -> ExportedGraph:
    """A block's graph whose weight inputs are initializers, so that an engine can hold them."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    names = {spec.name for spec in graph.component.inputs}
    inputs_to_initializers(model, [v.name for v in model.graph.input if v.name not in names])
    component = dataclasses.replace(graph.component, weight_binding="initializer")
    return dataclasses.replace(graph, model=model, component=component)


def holding_layers(graph: ExportedGraph) -> ExportedGraph:
    """A block's graph for ONNX Runtime, as `holding_weights`, whose initializers name files of
    their own names: so a session takes copies (`onnxruntime.new_session`).
    """
    held = holding_weights(graph)
    for tensor in injected(held.model):
        tensor.external_data[0].value = tensor.name
    component = dataclasses.replace(held.component, weight_binding="layer")
    return dataclasses.replace(held, component=component)


def injected(model: onnx.ModelProto) -> list[TensorProto]:
    """The initializers whose values the runtime provides."""
    return [
        t
        for t in model.graph.initializer
        if t.data_location == TensorProto.EXTERNAL
        and any(e.key == "location" and e.value in (INJECTED, t.name) for e in t.external_data)
    ]


def weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose injected initializers are inputs, after the others."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = injected(copy)
    names = {t.name for t in weights}
    kept = [t for t in copy.graph.initializer if t.name not in names]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in weights
    )
    return copy


def weights_as_constants(
    model: onnx.ModelProto, weights: Mapping[str, Array], folder: Path
) -> tuple[onnx.ModelProto, str]:
    """A copy whose injected initializers lie in `folder / DATA_FILE`.

    Args:
        weights: arrays in the graph's dtypes and layouts, by name; read one after another.

    Returns:
        the copy, and the digest of the data.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    digest = hashlib.sha256()
    with (folder / DATA_FILE).open("wb") as file:
        for tensor in injected(copy):
            data = weights[tensor.name].tobytes()
            digest.update(data)
            del tensor.external_data[:]
            for key, value in (
                ("location", DATA_FILE),
                ("offset", str(file.tell())),
                ("length", str(len(data))),
            ):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            file.write(data)
    return copy, digest.hexdigest()
