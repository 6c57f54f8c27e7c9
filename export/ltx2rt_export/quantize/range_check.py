"""FP16 only after a check: run the graph in float32 and look for values that float16 cannot hold.

This model family overflows float16 in places, so the check names the node, the value and where it
was, and the build is refused.
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
from ltx2rt.names import LORA_COMPONENTS
from ltx2rt.weights.precision import float_precision
from ltx2rt_export.component import load_weights
from ltx2rt_export.example_inputs import example_inputs
from ltx2rt_export.graph import ExportedGraph
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


class Probe:
    """A float16 graph run in float32, with a look at every value that float16 would hold.

    Args:
        graph: exported in float16; injected weights become inputs.
    """

    def __init__(self, graph: ExportedGraph) -> None:
        self.component = graph.component
        self._watched = _float16_values(graph)
        probe = _weights_as_inputs(substitute_float(graph, "float32").model)
        self._outputs = [o.name for o in probe.graph.output]
        del probe.graph.output[:]
        names = dict.fromkeys([*self._outputs, *(n.output[0] for n in self._watched)])
        probe.graph.output.extend(
            onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names
        )
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        # as exported: merged nodes would hide values
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(probe.SerializeToString(), settings)
        self._inputs = {i.name for i in self._session.get_inputs()}

    def check(self, feeds: Mapping[str, Array], layer: int | None, limit: float) -> Peak:
        """The largest magnitude in one run.

        Raises:
            UnsupportedError: a value reaches `limit`; names the first node that does.
        """
        given = {n: a for n, a in feeds.items() if n in self._inputs}
        top = Peak(node="", op_type="", value=0.0, layer=layer)
        for begin in range(0, len(self._watched), VALUES_PER_RUN):
            part = self._watched[begin : begin + VALUES_PER_RUN]
            values = self._session.run([n.output[0] for n in part], given)
            for node, array in zip(part, values, strict=True):
                value = float(np.abs(array).max(initial=0.0))
                name = node.name or node.output[0]
                found = Peak(node=name, op_type=node.op_type, value=value, layer=layer)
                if not value < limit:
                    raise UnsupportedError(_overflow(self.component.name, found))
                top = max(top, found, key=lambda p: p.value)
        return top

    def outputs(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What the graph gives, float32."""
        given = {n: a for n, a in feeds.items() if n in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))


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
    probe = Probe(graph)
    several = graph.component.weight_binding == "input"
    peaks = [probe.check(f, i if several else None, limit) for i, f in enumerate(calls)]
    return max(peaks, key=lambda p: p.value)


def check_float16(graphs: Sequence[ExportedGraph], seed: int = 0) -> dict[str, Peak]:
    """Run every float16 graph of a model on random inputs and its own weights: blocks one after
    another on what the head gives, the tail on what the last one gives.

    Returns:
        component -> the largest magnitude found in it.

    Raises:
        UnsupportedError: see `check_range`.
    """
    peaks: dict[str, Peak] = {}
    chain: dict[str, Array] = {}
    order = {name: i for i, name in enumerate(LORA_COMPONENTS)}
    narrow = [g for g in graphs if g.dtype == "float16"]
    for graph in sorted(narrow, key=lambda g: order.get(g.component.name, -1)):
        component, probe = graph.component, Probe(graph)
        inputs = example_inputs(component, np.random.default_rng(seed))
        feeds = inputs | {n: a for n, a in chain.items() if n in inputs}
        found = []
        for index, entries in enumerate(component.layers or (component.weights,)):
            layer = index if component.layers else None
            call = feeds | load_weights(entries, graph.transposed)
            found.append(probe.check(call, layer, FLOAT16_OVERFLOW))
            out = {n.removesuffix("_out"): a for n, a in probe.outputs(call).items()}
            feeds |= {n: a for n, a in out.items() if n in inputs}
            if component.name in order:
                chain |= out
        peaks[component.name] = max(found, key=lambda p: p.value)
    return peaks


def _weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    external = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    kept = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in external
    )
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _overflow(component: str, peak: Peak) -> str:
    where = "" if peak.layer is None else f" in layer {peak.layer}"
    return (
        f"precision={float_precision('float16').name!r} overflows in {component}{where}: "
        f"{peak.op_type} {peak.node!r} reaches {peak.value:.4g}, float16 ends at 65504; use "
        f"{float_precision('bfloat16').name}."
    )


def _float16_values(graph: ExportedGraph) -> list[onnx.NodeProto]:
    """Nodes that give float16, in graph order."""
    model = onnx.shape_inference.infer_shapes(graph.model)
    values = (*model.graph.value_info, *model.graph.output)
    found = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return [n for n in graph.model.graph.node if n.output[0] in found]
