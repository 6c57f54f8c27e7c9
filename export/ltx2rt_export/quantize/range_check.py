"""FP16 only after a check: run the graph in float32 and look for values that float16 cannot hold.

This model family overflows float16 in places (design: precision), so the check names the node, the
value and where it was, and the build is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from ltx2rt.engine import Array
from ltx2rt.errors import UnsupportedError
from ltx2rt_export.onnx import ExportedGraph
from ltx2rt_export.quantize.floats import substitute_float

#: from here on a value rounds to infinity in float16
FLOAT16_OVERFLOW = 65520.0

#: intermediate tensors fetched in one run: a few, because all together they do not fit in memory
VALUES_PER_RUN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The largest magnitude that a node gave. `layer` is None for components that run once."""

    node: str
    op_type: str
    value: float
    layer: int | None = None


def check_range(
    graph: ExportedGraph, calls: Iterable[Mapping[str, Array]], limit: float = FLOAT16_OVERFLOW
) -> Peak:
    """Check that no value of a float16 graph overflows on given inputs.

    Args:
        graph: exported in float16.
        calls: inputs and weights of each call, float32 and integers; a repeated component has one
            call a layer, in order.

    Returns:
        the largest magnitude found.

    Raises:
        UnsupportedError: a value overflows; names the first such node of the first such call.
    """
    watched = _float16_values(graph)
    twin = substitute_float(graph, "float32")
    several = graph.component.weight_binding == "input"
    top = Peak(node="", op_type="", value=0.0)
    for index, feeds in enumerate(calls):
        for node, peak in _peaks(twin.model, watched, feeds):
            found = Peak(
                node=node.name or node.output[0],
                op_type=node.op_type,
                value=peak,
                layer=index if several else None,
            )
            if not found.value < limit:
                raise UnsupportedError(_overflow(graph.component.name, found))
            top = max(top, found, key=lambda p: p.value)
    return top


def _overflow(component: str, peak: Peak) -> str:
    where = "" if peak.layer is None else f" in layer {peak.layer}"
    return (
        f"precision='fp16' overflows in {component}{where}: {peak.op_type} {peak.node!r} reaches "
        f"{peak.value:.4g}, float16 ends at 65504; use bf16."
    )


def _peaks(
    model: onnx.ModelProto, watched: Sequence[onnx.NodeProto], feeds: Mapping[str, Array]
) -> Iterable[tuple[onnx.NodeProto, float]]:
    """Largest magnitude of each watched node's first output; one run for every few nodes."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in watched
    )
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    # as exported: merged nodes would hide values
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(probe.SerializeToString(), settings)
    names = {i.name for i in session.get_inputs()}
    given = {name: array for name, array in feeds.items() if name in names}
    for begin in range(0, len(watched), VALUES_PER_RUN):
        part = watched[begin : begin + VALUES_PER_RUN]
        for node, value in zip(part, session.run([n.output[0] for n in part], given), strict=True):
            yield node, float(np.abs(value).max(initial=0.0))


def _float16_values(graph: ExportedGraph) -> list[onnx.NodeProto]:
    """Nodes that give float16, in graph order."""
    model = onnx.shape_inference.infer_shapes(graph.model)
    values = (*model.graph.value_info, *model.graph.output)
    found = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return [n for n in graph.model.graph.node if n.output[0] in found]
