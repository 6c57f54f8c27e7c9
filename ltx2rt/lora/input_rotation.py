"""OFT and BOFT of PEFT: inputs turned by orthogonal blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.lora.updates import Fitting, Load, Shape
from ltx2rt.weights.safetensors import TensorEntry

_MAX_TERMS = 100


@dataclass(frozen=True, slots=True)
class InputRotation(Fitting):
    """OFT of PEFT: `weight @ R^T`, R block-diagonal, made of skew-symmetric blocks Q.

    `upper` is `[blocks, b * (b - 1) / 2]`, the entries of Q right of the diagonal, row by row. R is
    `(1 - Q) (1 + Q)^-1`, or a series of Q; so the two turn opposite ways. Strength blends R with
    what changes nothing.

    Attributes:
        terms: of the series `1 + 2 Q + 2 Q^2 + ... + Q^n`, `n = terms - 1`; None for the inverse.
        bound: of the norm of all blocks together, if any (COFT); each may have its share.
        shared: one block for all places.
    """

    upper: TensorEntry
    terms: Any = None
    bound: Any = None
    shared: bool = False

    @property
    def kind(self) -> str:
        return "OFT"

    def parts(self) -> Iterator[TensorEntry]:
        yield self.upper

    @property
    def _width(self) -> int:
        """Inputs of a block."""
        return (1 + math.isqrt(1 + 8 * self.upper.shape[-1])) // 2

    def problem(self, target: Shape) -> str | None:
        shape, terms, bound = self.upper.shape, self.terms, self.bound
        if terms is not None and not (type(terms) is int and 1 <= terms <= _MAX_TERMS):
            return f"its series has {terms!r} terms, expected 1 to {_MAX_TERMS}"
        if bound is not None and not (isinstance(bound, int | float) and 0 < bound < math.inf):
            return f"its bound (eps) is {bound!r}, expected a number above 0"
        if len(shape) == 2 and len(target) == 2 and shape[1]:
            width = self._width
            n = target[1] // width if self.shared else shape[0]
            whole = width * (width - 1) // 2 == shape[1] and n * width == target[1]
            if whole and (shape[0] == 1 or not self.shared):
                return None
        return f"blocks {list(shape)} do not turn the inputs of {list(target)}"

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        rotations = self._rotations(load)
        one = np.eye(self._width, dtype=np.float32)
        return _turned(base, one + np.float32(strength) * (rotations - one))

    def _rotations(self, load: Load) -> Array:
        width = self._width
        skew = np.zeros((self.upper.shape[0], width, width), np.float32)
        skew[:, *np.triu_indices(width, 1)] = load(self.upper)
        skew -= np.swapaxes(skew, 1, 2)
        if self.bound is not None:
            share = self.bound / math.sqrt(len(skew))
            norms = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
            skew *= np.where(norms > share, share / np.maximum(norms, share), 1).astype(np.float32)
        one = np.eye(width, dtype=np.float32)
        if self.terms is None:
            return _cayley(skew)
        rotations, power = np.broadcast_to(one, skew.shape).copy(), one
        # PEFT adds the last power, not twice, and from three terms on always the third
        last = max(3, self.terms - 1) if self.terms > 2 else None
        for _ in range(1, last or self.terms):
            power = power @ skew
            rotations += 2 * power
        if last is not None:
            rotations += power @ skew
        return rotations


@dataclass(frozen=True, slots=True)
class InputButterfly(Fitting):
    """BOFT of PEFT: `scale * weight @ R^T`, R a product of stages of blocks.

    `blocks` is `[stages, n, b, b]`; `Q = (blocks - blocks^T) / 2` gives `(1 - Q) (1 + Q)^-1`. Stage
    i turns, of every `2^(i + 1)` half blocks, the even ones together and the odd ones. `scale` is
    `[out, 1]`. Strength blends every stage, and the scale, with what changes nothing.
    """

    blocks: TensorEntry
    scale: TensorEntry | None = None

    @property
    def kind(self) -> str:
        return "BOFT"

    def parts(self) -> Iterator[TensorEntry]:
        yield from filter(None, (self.blocks, self.scale))

    def problem(self, target: Shape) -> str | None:
        shape = self.blocks.shape
        fits = len(shape) == 4 and len(target) == 2 and 0 not in shape and shape[2] == shape[3]
        if fits:
            stages, n, b = shape[:3]
            fits = n * b == target[1] and stages <= 32
            fits = fits and (stages == 1 or (b % 2 == 0 and n % 2 ** (stages - 1) == 0))
        if fits and self.scale is not None:
            fits = self.scale.num_elements == target[0]
        return None if fits else f"blocks {list(shape)} do not turn the inputs of {list(target)}"

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        blocks = load(self.blocks)
        rotations = _cayley((blocks - np.swapaxes(blocks, -1, -2)) * np.float32(0.5))
        b = blocks.shape[-1]
        one = np.eye(b, dtype=np.float32)
        weight = base
        for i, stage in enumerate(one + np.float32(strength) * (rotations - one)):
            if b == 1:
                continue
            order = np.arange(base.shape[1])
            if len(blocks) > 1:
                order = order.reshape(-1, 2**i, 2, b // 2).swapaxes(1, 2).reshape(-1)
            weight = _turned(weight[:, np.argsort(order)], stage)[:, order]
        if self.scale is not None:
            weight = weight * (1 + np.float32(strength) * (load(self.scale).reshape(-1, 1) - 1))
        return weight


def _turned(weight: Array, rotations: Array) -> Array:
    """`weight @ R^T`, where R has these blocks, or the one for all places."""
    out, width = weight.shape
    blocks = weight.reshape(out, -1, rotations.shape[-1]).swapaxes(0, 1)
    turned: Array = blocks @ np.swapaxes(rotations, 1, 2)
    return turned.swapaxes(0, 1).reshape(out, width)


def _cayley(skew: Array) -> Array:
    one = np.eye(skew.shape[-1], dtype=np.float32)
    rotations: Array = (one - skew) @ np.linalg.inv(one + skew)
    return rotations
