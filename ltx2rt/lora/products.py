"""LoKr and LoHa of LyCORIS and PEFT: a Kronecker or an element-wise product of two matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.lora.updates import Additive, Load, LowRank, Shape, Update
from ltx2rt.weights.safetensors import TensorEntry


@dataclass(frozen=True, slots=True)
class _Pieces(Additive):
    """Two factor matrices, each stored whole (`w1`), as a product (`w1_a`, `w1_b`) or as that with
    a core between (`t1`: Tucker, whose `_a` is stored transposed).
    """

    pieces: Mapping[str, TensorEntry]
    scale: float = 1.0

    def parts(self) -> Iterator[TensorEntry]:
        yield from self.pieces.values()

    def half(self, which: int) -> Shape:
        """Shape of factor matrix 1 or 2."""
        whole, a = self.pieces.get(f"w{which}"), self.pieces.get(f"w{which}_a")
        if whole is not None or a is None:
            return (0, 0) if whole is None else whole.shape
        return a.shape[f"t{which}" in self.pieces], self.pieces[f"w{which}_b"].shape[1]

    def rank_of(self, which: int) -> int | None:
        """Inner size of factor matrix 1 or 2; None where it is stored whole."""
        b = self.pieces.get(f"w{which}_b")
        return None if b is None else b.shape[0]

    def split(self, which: int, load: Load) -> tuple[Array, Array]:
        """Factor matrix 1 or 2 as a product of two; a whole one by its singular values."""
        get = self.pieces.get
        whole, core = get(f"w{which}"), get(f"t{which}")
        if whole is not None:
            left, values, right = np.linalg.svd(load(whole), full_matrices=False)
            return left * values, right
        a, b = load(self.pieces[f"w{which}_a"]), load(self.pieces[f"w{which}_b"])
        return (a, b) if core is None else (a.T @ load(core), b)

    def matrix(self, which: int, load: Load) -> Array:
        """Factor matrix 1 or 2."""
        whole = self.pieces.get(f"w{which}")
        if whole is not None:
            return load(whole)
        a, b = self.split(which, load)
        product: Array = a @ b
        return product


@dataclass(frozen=True, slots=True)
class Kronecker(_Pieces):
    """LoKr: `scale * kron(w1, w2)`."""

    @property
    def kind(self) -> str:
        return "LoKr"

    @property
    def shape(self) -> Shape:
        (a, b), (c, d) = self.half(1), self.half(2)
        return a * c, b * d

    @property
    def rank(self) -> int:
        return (self.rank_of(1) or min(self.half(1))) * (self.rank_of(2) or min(self.half(2)))

    def delta(self, load: Load) -> Array:
        delta: Array = np.kron(self.matrix(1, load), self.matrix(2, load))
        delta *= np.float32(self.scale)
        return delta

    def factors(self, load: Load) -> tuple[Array, Array]:
        """`down` and `up` of a LoRA that does the same: kron(ab, cd) = kron(a, c) @ kron(b, d)."""
        (up_1, down_1), (up_2, down_2) = self.split(1, load), self.split(2, load)
        return np.kron(down_1, down_2), np.kron(up_1, up_2)


@dataclass(frozen=True, slots=True)
class Hadamard(_Pieces):
    """LoHa: `scale * w1 * w2`, element by element."""

    @property
    def kind(self) -> str:
        return "LoHa"

    @property
    def shape(self) -> Shape:
        return self.half(1)

    @property
    def rank(self) -> int:
        return (self.rank_of(1) or 1) * (self.rank_of(2) or 1)

    def delta(self, load: Load) -> Array:
        delta: Array = self.matrix(1, load) * self.matrix(2, load)
        delta *= np.float32(self.scale)
        return delta

    def factors(self, load: Load) -> tuple[Array, Array]:
        """`down` and `up` of a LoRA that does the same: products of every pair of rank ones."""
        (up_1, down_1), (up_2, down_2) = self.split(1, load), self.split(2, load)
        up = up_1[:, :, None] * up_2[:, None, :]
        down = down_1[:, None, :] * down_2[None, :, :]
        return down.reshape(self.rank, -1), up.reshape(-1, self.rank)


#: kinds that are LoRAs of some rank: `rank`, `scale` and `factors(load)`
Factored = LowRank | Kronecker | Hadamard


def rank_of(update: Update) -> int | None:
    """The rank of the LoRA that does the same; None where there is none."""
    return update.rank if isinstance(update, LowRank | Kronecker | Hadamard) else None
