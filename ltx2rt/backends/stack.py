"""Layers in sequence behind one call: a head, every layer with weights of its own, a tail.

A stack owns the engines, knows which of them runs each layer and where its weights come from. What
many calls share goes in through `begin`; a call takes host arrays and gives host arrays, and what
lies between head and tail is the stack's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from ltx2rt.engine import Array, Engine
from ltx2rt.weights.floats import as_dtype

E = TypeVar("E", bound=Engine)
Weights = Mapping[str, Array]
#: called with (layers done, all layers)
OnLayer = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer: the component that runs it, which of the component's layers it is, and for inputs
    whose name is not that of the tensor they take: input -> tensor.
    """

    block: str
    index: int
    takes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """How the components of a stack hang together; no engine is loaded for it.

    Attributes:
        gives: output of an engine -> the tensor that it is the next value of.
        collects: input of the tail -> the tensor of which it takes every value, the head's first,
            along a new first dimension.
    """

    head: str
    layers: tuple[LayerPlan, ...]
    tail: str
    gives: Mapping[str, str]
    collects: Mapping[str, str] = field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        """Every component once."""
        return tuple(dict.fromkeys((self.head, *(p.block for p in self.layers), self.tail)))

    def parts(
        self,
        engine: Callable[[str, int], E],
        load: Callable[[str, int], Weights],
        unmasked: Callable[[str, int], E | None] = lambda name, index: None,
    ) -> StackParts[E]:
        """With engines, and weights that are loaded when a layer needs them.

        Args:
            engine, load, unmasked: of a component and the number of its layer.
        """

        def part(name: str, index: int, takes: Mapping[str, str]) -> Part[E]:
            without = unmasked(name, index)
            return Part(engine(name, index), lambda: load(name, index), takes, without)

        return StackParts(
            head=part(self.head, 0, {}),
            layers=tuple(part(p.block, p.index, p.takes) for p in self.layers),
            tail=part(self.tail, 0, {}),
            gives=self.gives,
            collects=self.collects,
        )


@dataclass(frozen=True, slots=True)
class Part(Generic[E]):
    """One engine call of a stack: the engine, its weights of this layer ({}: it holds them),
    `LayerPlan.takes`, and the engine that runs calls without masks, of the same weights.
    """

    engine: E
    load: Callable[[], Weights]
    takes: Mapping[str, str]
    unmasked: E | None = None

    def engine_for(self, *, masked: bool) -> E:
        """The engine of a call."""
        return self.engine if masked or self.unmasked is None else self.unmasked


@dataclass(frozen=True, slots=True, kw_only=True)
class StackParts(Generic[E]):
    """What a stack is made of; see `StackPlan`."""

    head: Part[E]
    layers: tuple[Part[E], ...]
    tail: Part[E]
    gives: Mapping[str, str]
    collects: Mapping[str, str]

    def __iter__(self) -> Iterator[Part[E]]:
        return iter((self.head, *self.layers, self.tail))

    def dtypes(self) -> dict[str, tuple[str, ...]]:
        """Tensor -> the dtypes in which engines take it, in the order of the engines."""
        found: dict[str, dict[str, None]] = {}
        for part in self:
            for spec in part.engine.spec.inputs:
                found.setdefault(part.takes.get(spec.name, spec.name), {})[spec.dtype] = None
        return {name: tuple(dtypes) for name, dtypes in found.items()}

    @property
    def masks(self) -> frozenset[str]:
        """See `Stack.masks`."""
        left_out: set[frozenset[str]] = set()
        for part in self.layers:
            names, without = (
                {s.name for s in engine.spec.inputs} if engine is not None else None
                for engine in (part.engine, part.unmasked)
            )
            assert names is not None
            left_out.add(frozenset() if without is None else frozenset(names - without))
        return frozenset.intersection(*left_out) if len(left_out) == 1 else frozenset()

    def close(self) -> None:
        """Close every engine."""
        engines = (e for part in self for e in (part.engine, part.unmasked) if e is not None)
        for engine in {id(engine): engine for engine in engines}.values():
            engine.close()


class Constants(Protocol):
    """What `Stack.begin` holds: opaque, given back in calls, closed by whoever began it."""

    def holds(self, names: Collection[str]) -> bool:
        """Whether one of these tensors is among them, or among those that they follow."""
        ...

    def close(self) -> None: ...


def is_masked(constants: Constants | None, masks: Collection[str]) -> bool:
    """Whether a call with these constants has masks, or must have them: none may be left out."""
    return not masks or constants is None or constants.holds(masks)


@dataclass(frozen=True, slots=True)
class Call:
    """One pass through a stack: the tensors that go in, and what `begin` holds for it."""

    tensors: Mapping[str, Array]
    constants: Constants | None = None


class Stack(Protocol):
    """Head, layers and tail as one."""

    @property
    def num_layers(self) -> int: ...

    def dtype(self, name: str) -> str:
        """The dtype in which engines take a tensor that comes from outside."""
        ...

    @property
    def masks(self) -> frozenset[str]:
        """Tensors that may be left out of constants, all together: layers then run engines that
        mask nothing. Empty where every call needs them.
        """
        ...

    def begin(
        self,
        constants: Mapping[str, Array],
        by_layer: Mapping[str, Array] | None = None,
        base: Constants | None = None,
    ) -> Constants:
        """Hold tensors that several calls take: converted once, and on a device uploaded once.

        Args:
            constants: by the name that engines take them by; those that none takes are ignored.
            by_layer: `[layers, ...]`, of which layer `i` takes `[i]`.
            base: further constants, which must stay open as long as these.
        """
        ...

    def __call__(
        self, calls: Sequence[Call], on_layer: OnLayer | None = None
    ) -> list[dict[str, Array]]:
        """Run head, all layers and tail; each layer runs for all calls before the next one, so
        weights are needed once, however many calls there are.

        Returns:
            for each call the tail's outputs: new float32 arrays.

        Raises:
            ShapeError: a tensor is missing or does not fit an engine.
            EngineError: the backend failed.
        """
        ...

    def close(self) -> None:
        """Free engines and weights; closing again does nothing."""
        ...


def ready(
    tensors: Mapping[str, Array], dtypes: Mapping[str, Sequence[str]]
) -> Iterator[tuple[tuple[str, str], Array]]:
    """Tensors in every dtype that engines take them in, contiguous: ((name, dtype), array)."""
    for name, array in tensors.items():
        for dtype in dtypes.get(name, ()):
            yield (name, dtype), _ready(array, dtype)


def _ready(array: Array, dtype: str) -> Array:
    if array.ndim and array.shape[0] > 1 and array.strides[0] == 0:  # one sample, seen as several
        return np.ascontiguousarray(np.broadcast_to(as_dtype(array[:1], dtype), array.shape))
    return np.ascontiguousarray(as_dtype(array, dtype))
