"""Who makes and who reads every value of a graph: what pattern matching needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphIndex:
    """An ONNX graph, indexed; make it with `GraphIndex.of`.

    Attributes:
        producers: value -> the node that makes it; graph inputs and initializers have none.
        consumers: value -> the nodes that read it, in graph order.
        constants: initializers that hold at most 16 numbers.
    """

    producers: dict[str, onnx.NodeProto]
    consumers: dict[str, list[onnx.NodeProto]]
    constants: dict[str, np.ndarray]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> GraphIndex:
        """Index a graph as it is now."""
        consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                consumers.setdefault(name, []).append(node)
        return cls(
            producers={name: node for node in graph.node for name in node.output},
            consumers=consumers,
            constants={
                t.name: numpy_helper.to_array(t)
                for t in graph.initializer
                if t.data_location != onnx.TensorProto.EXTERNAL and np.prod(t.dims) <= 16
            },
        )

    def made_by(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is of this type."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == op_type else None

    def uncast(self, name: str) -> str:
        """The value before casts."""
        while (node := self.made_by(name, "Cast")) is not None:
            name = node.input[0]
        return name

    def scalar(self, name: str) -> float | None:
        """A constant of one number."""
        value = self.constants.get(self.uncast(name))
        return None if value is None or value.size != 1 else float(value.astype(np.float64).item())

    def transposed(self, name: str, perm: Sequence[int]) -> str | None:
        """What a `Transpose` with this permutation made the value from."""
        node = self.made_by(name, "Transpose")
        if node is None or list(attribute_ints(node, "perm")) != list(perm):
            return None
        source: str = node.input[0]
        return source

    def norm(self, name: str) -> tuple[str, float] | None:
        """(x, epsilon) of a value `x / sqrt(mean(x^2) + epsilon)`, with casts around it or not."""
        unit = self.made_by(self.uncast(name), "Mul")
        inverse = None if unit is None else self.made_by(unit.input[1], "Reciprocal")
        root = None if inverse is None else self.made_by(inverse.input[0], "Sqrt")
        power = None if root is None else self.made_by(root.input[0], "Add")
        mean = None if power is None else self.made_by(power.input[0], "ReduceMean")
        squares = None if mean is None else self.made_by(mean.input[0], "Pow")
        if unit is None or power is None or squares is None:
            return None
        epsilon = self.scalar(power.input[1])
        is_square = self.scalar(squares.input[1]) == 2 and squares.input[0] == unit.input[0]
        if epsilon is None or not is_square:
            return None
        return self.uncast(unit.input[0]), float(f"{epsilon:.2g}")  # as written, not as rounded

    def last_sizes(self, shape: str, count: int) -> tuple[int, ...] | None:
        """The last `count` entries of a shape tensor, if they are constants."""
        sizes: list[int | None]
        if shape in self.constants:
            sizes = [int(n) for n in self.constants[shape].reshape(-1)]
        else:
            node = self.made_by(shape, "Concat")
            if node is None:
                return None
            sizes = []
            for part in node.input:
                value = self.constants.get(part)
                sizes += [None] if value is None else [int(n) for n in value.reshape(-1)]
        known = [n for n in sizes[-count:] if n is not None and n > 0]
        return tuple(known) if len(known) == count else None


def attribute_ints(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    """An integer list attribute; empty without it."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())
