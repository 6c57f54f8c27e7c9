"""Adaptive norms and gated residuals of a block, whose rows are gathered by timestep index."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from ltx2rt_export.custom_ops.index import GraphIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """`rms_norm(x) (1 + scale) + shift`.

    Attributes:
        x: value, `[B, T, W]`.
        scale, shift: values, `[U, W]`, a row for each distinct timestep.
        index: value, `[B, T]` int64, row of each token.
        epsilon: of the norm.
        out: value, `[B, T, W]`.
    """

    x: str
    scale: str
    shift: str
    index: str
    epsilon: float
    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedResidual:
    """`x + y gate`; shapes as of `Modulation`."""

    x: str
    y: str
    gate: str
    index: str
    out: str


def find_modulations(graph: onnx.GraphProto, index: GraphIndex) -> list[Modulation]:
    """Every adaptive norm of the graph, in graph order."""
    found = (_modulation(index, node) for node in graph.node if node.op_type == "Add")
    return [site for site in found if site is not None]


def find_gated_residuals(graph: onnx.GraphProto, index: GraphIndex) -> list[GatedResidual]:
    """Every gated residual of the graph, in graph order."""
    found = (_gated_residual(index, node) for node in graph.node if node.op_type == "Add")
    return [site for site in found if site is not None]


def _gathered(index: GraphIndex, value: str) -> tuple[str, str] | None:
    """(rows, row of each token) of a value that was gathered from the first axis."""
    node = index.made_by(value, "Gather")
    if node is None or any(a.name == "axis" and a.i for a in node.attribute):
        return None
    return None if node.input[1] in index.constants else (node.input[0], node.input[1])


def _modulation(index: GraphIndex, node: onnx.NodeProto) -> Modulation | None:
    scaled, shift = index.made_by(node.input[0], "Mul"), _gathered(index, node.input[1])
    if scaled is None or shift is None:
        return None
    factor = index.made_by(scaled.input[1], "Add")
    normed = index.norm(scaled.input[0])
    if factor is None or normed is None or index.scalar(factor.input[1]) != 1:
        return None
    scale = _gathered(index, factor.input[0])
    if scale is None or scale[1] != shift[1]:
        return None
    return Modulation(
        x=normed[0],
        scale=scale[0],
        shift=shift[0],
        index=scale[1],
        epsilon=normed[1],
        out=node.output[0],
    )


def _gated_residual(index: GraphIndex, node: onnx.NodeProto) -> GatedResidual | None:
    gated = index.made_by(node.input[1], "Mul")
    gate = None if gated is None else _gathered(index, gated.input[1])
    if gated is None or gate is None:
        return None
    return GatedResidual(
        x=node.input[0], y=gated.input[0], gate=gate[0], index=gate[1], out=node.output[0]
    )
