"""The first node at which two sides differ, and the case that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx

from ltx2rt.engine import Array
from ltx2rt.partial import Partial
from ltx2rt.weights.floats import as_dtype, as_float32
from ltx2rt_export.bisect.case import cut, write_case
from ltx2rt_export.bisect.float32_graph import float32_graph
from ltx2rt_export.bisect.lineage import Lineage, between, type_of
from ltx2rt_export.bisect.search import Search, difference
from ltx2rt_export.graph import DTYPE_NAMES


class Side(Protocol):
    """What computes a graph. `model` is one of `marks.typed`."""

    model: onnx.ModelProto

    def values(self, tensors: Sequence[str]) -> dict[str, Array]:
        """These tensors of the graph, floats as float32."""
        ...

    def alone(self, model: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
        """The only output of a graph of `case.cut`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The first difference.

    Attributes:
        node, op_type, tensor: the node, and which of its outputs.
        rel_rms, max_abs: how far it is from the reference, within the whole graph.
        bound: relative RMS from which tensors differ.
        alone: relative RMS of the saved case; where it is within the bound, the node is wrong only
            beside those around it.
        operators: those of the case, in order.
        probes: how often the sides were asked.
        files: the case.
    """

    node: str
    op_type: str
    tensor: str
    rel_rms: float
    max_abs: float
    bound: float
    alone: float
    operators: tuple[str, ...]
    probes: int
    files: tuple[str, ...]


def find_first(
    reference: Side,
    suspect: Side,
    inputs: Mapping[str, Array],
    weights: Mapping[str, Array],
    bound: float,
    folder: Path,
    on_probe: Callable[[Sequence[str]], None] = lambda names: None,
) -> Finding | None:
    """Find the first node at which the sides differ and save it with its inputs.

    Args:
        inputs, weights: of both graphs, in their dtypes (bfloat16: bit patterns).
        bound: see `Finding`.
        folder: of the case; none, or an empty one.
        on_probe: see `Search`.

    Returns:
        None where all outputs agree; nothing is written then.

    Raises:
        EngineError: a side fails.
        OSError: the case cannot be written.
    """
    model = suspect.model
    lineage = Lineage(model, inputs)
    search = Search(lineage, reference.values, suspect.values, bound, on_probe)
    tensor = search.first([value.name for value in model.graph.output])
    if tensor is None:
        return None
    given = {name: as_float32(a, _dtype(model, name)) for name, a in inputs.items()}
    nearest = lineage.nearest(tensor)
    for name, values in (reference.values(nearest) if nearest else {}).items():
        dtype = _dtype(model, name)  # as the engine would hand it on
        given[name] = as_float32(as_dtype(values, dtype), dtype)
    ours, feeds = cut(model, weights, given, tensor)
    theirs, _ = cut(reference.model, weights, given, tensor)
    got, expected = suspect.alone(ours, feeds), reference.alone(theirs, feeds)
    with Partial(folder, folder=True) as part:
        files = write_case(part.path, ours, float32_graph(theirs), feeds, expected, got)
        names = [path.name for path in files]
    node, found = lineage.nodes[tensor], search.found[tensor]
    return Finding(
        node=node.name or tensor,
        op_type=node.op_type,
        tensor=tensor,
        rel_rms=found.rel_rms,
        max_abs=found.max_abs,
        bound=bound,
        alone=difference(got, expected).rel_rms,
        operators=tuple(n.op_type for n in between(model, given, tensor)[0]),
        probes=search.probes,
        files=tuple(str(folder / name) for name in names),
    )


def _dtype(model: onnx.ModelProto, name: str) -> str:
    return DTYPE_NAMES[type_of(model, name)]
