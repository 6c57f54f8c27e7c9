"""The nodes around a difference as a graph of their own, with its inputs, for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from polygraphy.comparator import RunResults
from polygraphy.json import save_json

from ltx2rt.engine import Array
from ltx2rt_export.bisect.lineage import FLOATS, between, type_of
from ltx2rt_export.bisect.marks import quiet

#: after the names of 16-bit tensors, which a case takes and gives in float32
WIDE = "_float32"


def cut(
    model: onnx.ModelProto, weights: Mapping[str, Array], inputs: Mapping[str, Array], output: str
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The nodes of a graph of `marks.typed` that compute `output` from `inputs`, at their sizes.

    Args:
        weights: arrays in the graph's dtypes, which become initializers where they are read.
        inputs: tensors of the graph and its own inputs; floats in float32.

    Returns:
        the graph, all floats at its boundary in float32, and its inputs by their names there.
    """
    nodes, read = between(model, inputs, output)
    types = {v.name: v.type.tensor_type for v in model.graph.input}
    small = onnx.ModelProto()
    small.CopyFrom(model)
    small.graph.Clear()
    graph, feeds = small.graph, dict[str, Array]()
    graph.name = "case"
    graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    for name in sorted(read):
        if name in inputs:
            kind, given = type_of(model, name), name
            if kind in FLOATS and kind != TensorProto.FLOAT:
                given = name + WIDE
                graph.node.append(helper.make_node("Cast", [given], [name], to=kind))
                kind = TensorProto.FLOAT
            feeds[given] = inputs[name]
            graph.input.append(helper.make_tensor_value_info(given, kind, inputs[name].shape))
        elif name in weights:
            dims = [d.dim_value for d in types[name].shape.dim]
            graph.initializer.append(
                TensorProto(
                    name=name,
                    data_type=types[name].elem_type,
                    dims=dims,
                    raw_data=np.ascontiguousarray(weights[name]).tobytes(),
                )
            )
    graph.node.extend(nodes)
    given = output
    if type_of(model, output) != TensorProto.FLOAT:
        given = output + WIDE
        graph.node.append(helper.make_node("Cast", [output], [given], to=TensorProto.FLOAT))
    value = next(v for v in model.graph.value_info if v.name == output)
    graph.output.add().CopyFrom(value)
    graph.output[0].name = given
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return small, feeds


def write_case(
    folder: Path,
    engine: onnx.ModelProto,
    reference: onnx.ModelProto,
    inputs: Mapping[str, Array],
    expected: Array,
    got: Array,
) -> list[Path]:
    """Write a case into an empty folder.

    Args:
        engine, reference: graphs of `cut`; that of the engine as it is built.
        expected, got: what they give.

    Returns:
        the files: both graphs; inputs and outputs as `.npz` and as Polygraphy's `--load-inputs`
        and `--load-outputs` take them.
    """
    names = ("engine.onnx", "reference.onnx", "inputs.npz", "outputs.npz", "inputs.json",
             "expected.json")  # fmt: skip
    files = [folder / name for name in names]
    output = engine.graph.output[0].name
    files[0].write_bytes(engine.SerializeToString(deterministic=True))
    files[1].write_bytes(reference.SerializeToString(deterministic=True))
    np.savez(files[2], allow_pickle=False, **dict(inputs))
    np.savez(files[3], allow_pickle=False, expected=expected, got=got)
    results = RunResults()
    results.add([{output: expected}], runner_name="onnxruntime")
    with quiet():
        save_json([dict(inputs)], str(files[4]), description="inputs")
        results.save(str(files[5]))
    return files
