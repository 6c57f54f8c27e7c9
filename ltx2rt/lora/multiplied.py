"""Kinds that multiply the base: (IA)^3 and GLoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.lora.updates import Fitting, Load, Shape
from ltx2rt.weights.safetensors import TensorEntry

#: factors of GLoRA
GLORA = ("a1", "a2", "b1", "b2")


@dataclass(frozen=True, slots=True)
class Scaling(Fitting):
    """(IA)^3: a factor an output or an input, which is `offset` more than what is stored (PEFT: 0,
    LyCORIS: 1). PEFT scales the biases of outputs as well, LyCORIS does not.
    """

    factors: TensorEntry
    inputs: bool = False
    offset: int = 0

    @property
    def kind(self) -> str:
        return "(IA)^3"

    def parts(self) -> Iterator[TensorEntry]:
        yield self.factors

    def problem(self, target: Shape) -> str | None:
        shape = self.factors.shape
        width = target[-1 if self.inputs else 0] if target else 0
        if len(target) in (1, 2) and self.factors.num_elements == width == max(shape, default=0):
            return None
        axis = "inputs" if self.inputs else "outputs"
        return f"{list(shape)} factors do not scale the {axis} of {list(target)}"

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        factors = load(self.factors).reshape(-1) + np.float32(self.offset)
        blended = 1 + np.float32(strength) * (factors - 1)
        scaled: Array = base * (
            blended if self.inputs else blended[(...,) + (None,) * (base.ndim - 1)]
        )
        return scaled


@dataclass(frozen=True, slots=True)
class Glora:
    """GLoRA of LyCORIS: `base + scale * (base @ a1 @ a2 + b1 @ b2)`.

    `a1` is `[in, rank]`, `b1` `[out, rank]`, `a2` and `b2` `[rank, in]`.
    """

    pieces: Mapping[str, TensorEntry]
    scale: float = 1.0

    @property
    def kind(self) -> str:
        return "GLoRA"

    @property
    def shape(self) -> Shape:
        return self.pieces["b1"].shape[0], self.pieces["b2"].shape[1]

    def parts(self) -> Iterator[TensorEntry]:
        yield from self.pieces.values()

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        a1, a2, b1, b2 = (load(self.pieces[name]) for name in GLORA)
        added: Array = base @ a1 @ a2 + b1 @ b2
        return base + np.float32(strength * self.scale) * added


def glora_chains(a1: Shape, a2: Shape, b1: Shape, b2: Shape) -> bool:
    """Whether factors of these shapes are of one linear layer."""
    if any(len(shape) != 2 or 0 in shape for shape in (a1, a2, b1, b2)):
        return False
    return a1 == a2[::-1] and b1[1] == b2[0] and b2[1] == a2[1]
