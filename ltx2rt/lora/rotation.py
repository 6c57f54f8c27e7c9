"""OFT and BOFT of LyCORIS: outputs turned by orthogonal blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.lora.updates import Fitting, Load, Shape
from ltx2rt.weights.safetensors import TensorEntry


@dataclass(frozen=True, slots=True)
class Rotation(Fitting):
    """Diagonal OFT and BOFT of LyCORIS: outputs turned by orthogonal blocks.

    `blocks` is `[n, b, b]` (one stage) or `[stages, n, b, b]` (butterfly): `Q = blocks - blocks^T`
    gives the rotation `(1 + Q) (1 - Q)^-1` (Cayley). `constraint` bounds the norm of Q when it is
    above 0; `rescale` is `[out, 1]`. Strength blends every stage, and the rescaling, with what
    changes nothing.
    """

    blocks: TensorEntry
    rescale: TensorEntry | None = None
    constraint: float = 0.0

    @property
    def kind(self) -> str:
        return "OFT" if len(self.blocks.shape) == 3 else "BOFT"

    def parts(self) -> Iterator[TensorEntry]:
        yield from filter(None, (self.blocks, self.rescale))

    def problem(self, target: Shape) -> str | None:
        """Why it does not fit a tensor; None when it does."""
        *stages, n, b, c = self.blocks.shape
        fits = len(target) == 2 and b == c and n * b == target[0]
        if fits and stages:
            fits = b % 2 == 0 and target[0] % (2 ** (stages[0] - 1) * b) == 0
        if fits and self.rescale is not None:
            fits = self.rescale.num_elements == target[0]
        found = f"blocks {list(self.blocks.shape)}"
        return None if fits else f"{found} do not turn a weight of {list(target)}"

    def rotations(self, load: Load) -> Array:
        """`[stages, n, b, b]` float32."""
        blocks = load(self.blocks)
        skew = blocks - np.swapaxes(blocks, -1, -2)
        norm = np.linalg.norm(skew) + 1e-8
        if 0 < self.constraint < norm:
            skew = skew * np.float32(self.constraint / norm)
        one = np.eye(blocks.shape[-1], dtype=np.float32)
        rotations: Array = (one + skew) @ np.linalg.inv(one - skew)
        return rotations if rotations.ndim == 4 else rotations[None]

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        rotations = self.rotations(load)
        one = np.eye(rotations.shape[-1], dtype=np.float32)
        blended = one + np.float32(strength) * (rotations - one)
        if self.kind == "OFT":  # its trainer multiplies by the transposed block
            blocks = base.reshape(*blended.shape[1:3], -1)
            new: Array = (np.swapaxes(blended[0], 1, 2) @ blocks).reshape(base.shape)
        else:
            new = _butterfly(base, blended)
        if self.rescale is not None:
            new *= 1 + np.float32(strength) * (load(self.rescale).reshape(-1, 1) - 1)
        return new


def _butterfly(base: Array, stages: Array) -> Array:
    """Stage i turns outputs that lie `2^i * b/2` apart."""
    out, width = base.shape
    n, b = stages.shape[1:3]
    for i, blocks in enumerate(stages):
        apart = 2**i * (b // 2)
        paired = base.reshape(-1, 2, apart, width).swapaxes(1, 2).reshape(n, b, width)
        turned = (blocks @ paired).reshape(-1, apart, 2, width)
        base = turned.swapaxes(1, 2).reshape(out, width)
    return base
