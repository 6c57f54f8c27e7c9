"""What an adapter does to one tensor: the kinds, each with the arithmetic of its trainer.

Every kind has `parts` (the tensors of the file it is made of), the `shape` of the tensor it is for
(None: any), and `merged(base, strength, load)`, which never changes `base`. Strength blends: 0 is
the base, 1 what was trained. Formulas: spec/lora.md; LyCORIS 4.1 and PEFT 0.21 are the reference of
the tests (docs/files.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.weights.safetensors import TensorEntry

#: float32 values of a tensor of the adapter's file
Load = Callable[[TensorEntry], Array]
Shape = tuple[int, ...]
#: keeps the norm of an empty row from dividing by zero, as LyCORIS does
_EPSILON = np.finfo(np.float32).eps


class Update(Protocol):
    """One change of one tensor; see the module's text."""

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> Shape | None: ...

    def parts(self) -> Iterator[TensorEntry]: ...

    def merged(self, base: Array, strength: float, load: Load) -> Array: ...


class Additive(ABC):
    """An update that adds `delta(load)` whatever the base is."""

    __slots__ = ()

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    @abstractmethod
    def shape(self) -> Shape: ...

    @abstractmethod
    def parts(self) -> Iterator[TensorEntry]: ...

    @abstractmethod
    def delta(self, load: Load) -> Array:
        """What is added at strength 1, float32, in the tensor's shape."""

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        """`base + strength * delta`, float32."""
        added: Array = base + np.float32(strength) * self.delta(load)
        return added


class Fitting(ABC):
    """An update whose tensors do not tell the shape of what it is for."""

    __slots__ = ()

    @property
    def shape(self) -> None:
        return None

    @abstractmethod
    def problem(self, target: Shape) -> str | None:
        """Why it does not fit a tensor; None when it does."""


@dataclass(frozen=True, slots=True)
class LowRank(Additive):
    """LoRA, LoCoN: `scale * up @ down`, or `scale * up @ mid @ down` (Tucker); AdaLoRA: `up @
    (gains * down)`.

    `down` is `[rank, in]` (A), `up` is `[out, rank]` (B), `mid` is `[rank, rank]`, `gains` (E)
    `[rank, 1]`.
    """

    down: TensorEntry
    up: TensorEntry
    scale: float = 1.0
    mid: TensorEntry | None = None
    gains: TensorEntry | None = None

    @property
    def kind(self) -> str:
        if self.gains is not None:
            return "AdaLoRA"
        return "LoRA" if self.mid is None else "LoCoN (Tucker)"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> Shape:
        return self.up.shape[0], self.down.shape[1]

    def parts(self) -> Iterator[TensorEntry]:
        yield from filter(None, (self.down, self.mid, self.up, self.gains))

    def factors(self, load: Load) -> tuple[Array, Array]:
        """`down` and `up` without the scale: together the delta at scale 1."""
        down = load(self.down)
        if self.gains is not None:
            down = down * load(self.gains).reshape(-1, 1)
        return down if self.mid is None else load(self.mid) @ down, load(self.up)

    def delta(self, load: Load) -> Array:
        down, up = self.factors(load)
        delta: Array = np.float32(self.scale) * (up @ down)
        return delta


@dataclass(frozen=True, slots=True)
class Difference(Additive):
    """A difference stored whole: of a weight, bias, norm or table."""

    added: TensorEntry
    scale: float = 1.0
    kind: str = "difference"

    @property
    def shape(self) -> Shape:
        return self.added.shape

    def parts(self) -> Iterator[TensorEntry]:
        yield self.added

    def delta(self, load: Load) -> Array:
        delta: Array = np.float32(self.scale) * load(self.added)
        return delta


@dataclass(frozen=True, slots=True)
class Replacement:
    """A tensor stored whole, which takes the place of the base's."""

    value: TensorEntry
    kind: str = "replacement"

    @property
    def shape(self) -> Shape:
        return self.value.shape

    def parts(self) -> Iterator[TensorEntry]:
        yield self.value

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        return _blend(base, load(self.value), strength)


@dataclass(frozen=True, slots=True)
class Decomposed:
    """DoRA on top of another update: its direction, with magnitudes of their own.

    `magnitude` is `[out]` or `[out, 1]`, a number an output, or `[1, in]`, one an input. LyCORIS
    and PEFT divide by the norms of the updated weight. ComfyUI divides outputs by those of the
    *base*, and files made for it carry magnitudes that are right for that (`by_base_norm`).
    """

    update: Additive
    magnitude: TensorEntry
    by_base_norm: bool = False

    @property
    def kind(self) -> str:
        return f"DoRA ({self.update.kind})"

    @property
    def shape(self) -> Shape:
        return self.update.shape

    @property
    def per_input(self) -> bool:
        out, width = self.shape
        return self.magnitude.shape == (1, width) and (out, width) != (1, 1)

    def parts(self) -> Iterator[TensorEntry]:
        yield from self.update.parts()
        yield self.magnitude

    def problem(self) -> str | None:
        """Why the magnitudes do not fit; None when they do."""
        out = self.shape[0]
        if self.per_input or self.magnitude.shape in ((out,), (out, 1)):
            return None
        return f"{self.magnitude.name} is {list(self.magnitude.shape)}, expected [{out}, 1]"

    def merged(self, base: Array, strength: float, load: Load) -> Array:
        new = base + self.update.delta(load)
        axis = 0 if self.per_input else 1
        measured = base if self.by_base_norm and axis == 1 else new
        norm = np.linalg.norm(measured, axis=axis, keepdims=True) + _EPSILON
        new *= load(self.magnitude).reshape(norm.shape) / norm
        return _blend(base, new, strength)


def _blend(base: Array, new: Array, strength: float) -> Array:
    if strength == 1.0:
        return new
    blended: Array = base + np.float32(strength) * (new - base)
    return blended
