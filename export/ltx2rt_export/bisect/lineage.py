"""Which tensors of a graph are computed from which, and the nodes between some of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx
from onnx import TensorProto

#: what numbers are compared in
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


class Lineage:
    """The tensors of a graph that may be compared, in its order: floats that depend on its inputs,
    and its outputs. Sets of them are bits of an int, bit `i` for `tensors[i]`.

    Args:
        model: with the types of its values (`onnx.shape_inference`).
        inputs: those that are no weights; what is computed from weights alone belongs to the node
            that uses it.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Collection[str]) -> None:
        values = (*model.graph.value_info, *model.graph.output)
        floats = {v.name for v in values if v.type.tensor_type.elem_type in FLOATS}
        floats |= {v.name for v in model.graph.output}
        self.tensors: list[str] = []
        self.nodes: dict[str, onnx.NodeProto] = {}
        #: tensor -> it and all that it is computed from, for every tensor of the graph
        self._upto = dict.fromkeys(inputs, 0)
        #: tensor -> those that are read on the way to it, without another between
        self._nearest = dict.fromkeys(inputs, 0)
        for node in model.graph.node:
            read = [name for name in reads(node) if name in self._upto]
            if not read:
                continue
            upto = nearest = 0
            for name in read:
                upto |= self._upto[name]
                nearest |= self._bit(name) or self._nearest[name]
            for name in filter(None, node.output):
                self._upto[name], self._nearest[name] = upto, nearest
                self.nodes[name] = node
                if name in floats:
                    self._upto[name] |= 1 << len(self.tensors)
                    self.tensors.append(name)

    def upto(self, tensor: str) -> int:
        """A tensor and all that it is computed from."""
        return self._upto[tensor]

    def before(self, tensor: str) -> int:
        """All that a tensor is computed from."""
        return self._upto[tensor] & ~self._bit(tensor)

    def nearest(self, tensor: str) -> list[str]:
        """Those that a tensor is computed from directly, or through others that are not compared:
        integers, codes.
        """
        return self.named(self._nearest[tensor])

    def named(self, bits: int) -> list[str]:
        """The tensors of a set, in graph order."""
        return [name for i, name in enumerate(self.tensors) if bits >> i & 1]

    def middle(self, bits: int) -> str:
        """The tensor of a set that most nearly halves it: as many lie up to it as not."""
        half = bits.bit_count() / 2
        return min(
            self.named(bits), key=lambda name: abs((self._upto[name] & bits).bit_count() - half)
        )

    def _bit(self, tensor: str) -> int:
        """The set of a tensor alone; empty where it is not compared."""
        upto = self._upto[tensor]
        last = upto.bit_length() - 1
        return 1 << last if upto and self.tensors[last] == tensor else 0


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, the graphs inside it too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {v.name for v in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in reads(inner) if name not in own)
                own |= set(inner.output)


def between(
    model: onnx.ModelProto, inputs: Collection[str], output: str
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that compute a tensor from others, in graph order, and all that they read."""
    wanted, nodes = {output}, []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(name for name in node.output if name not in inputs):
            nodes.append(node)
            wanted |= set(reads(node))
    return nodes[::-1], wanted - {output}


def type_of(model: onnx.ModelProto, name: str) -> int:
    """The element type of a tensor whose type is known."""
    values: Sequence[onnx.ValueInfoProto] = (
        *model.graph.input,
        *model.graph.value_info,
        *model.graph.output,
    )
    return next(v.type.tensor_type.elem_type for v in values if v.name == name)
