"""The stack on the host: engines that take and give arrays, one after another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltx2rt.backends.layer_engines import HeldLayers, LayerEngines
from ltx2rt.backends.stack import (
    Call,
    Constants,
    OnLayer,
    Part,
    StackParts,
    Weights,
    is_masked,
    ready,
)
from ltx2rt.engine import NUMPY_DTYPES, Array, Engine
from ltx2rt.errors import InternalError
from ltx2rt.trace import WEIGHTS, span
from ltx2rt.weights.floats import as_dtype, as_float32


class HostStack:
    """The slow, obvious `Stack`.

    Args:
        parts: closed with the stack. Layers may be `LayerEngines`.
        keep: hold weights once they are loaded; otherwise every call loads every layer anew.
        kept_layers: hold those of so many of the first layers only, where memory is short.
    """

    def __init__(
        self, parts: StackParts[Engine], *, keep: bool = True, kept_layers: int | None = None
    ) -> None:
        self._parts = parts
        self._keep = keep
        every = len(parts.layers)
        self._streamed = range(every if kept_layers is None else kept_layers, every)
        self._dtypes = parts.dtypes()
        self._masks = parts.masks
        self._loaded: dict[int, Weights] = {}
        self._held = HeldLayers()

    @property
    def num_layers(self) -> int:
        return len(self._parts.layers)

    def dtype(self, name: str) -> str:
        """See `Stack`."""
        return self._dtypes[name][0]

    @property
    def masks(self) -> frozenset[str]:
        """See `Stack`."""
        return self._masks

    def begin(
        self,
        constants: Mapping[str, Array],
        by_layer: Mapping[str, Array] | None = None,
        base: Constants | None = None,
    ) -> HostConstants:
        """See `Stack`."""
        assert base is None or isinstance(base, HostConstants)
        return HostConstants(
            dict(ready(constants, self._dtypes)), dict(ready(by_layer or {}, self._dtypes)), base
        )

    def __call__(
        self, calls: Sequence[Call], on_layer: OnLayer | None = None
    ) -> list[dict[str, Array]]:
        """See `Stack`."""
        head, tail = self._parts.head, self._parts.tail
        weights = self._weights(-1, head)
        states = [self._start(head, call, weights) for call in calls]
        self._forget(-1)
        masked = [is_masked(call.constants, self.masks) for call in calls]
        for index, part in enumerate(self._parts.layers):
            for state, call, masks in zip(states, calls, masked, strict=True):
                engine, weights = self._layer(index, part, masked=masks)
                out = engine(_feeds(part, state, call, weights, index, engine))
                self._advance(state, out, index + 1)
            self._forget(index)
            if on_layer is not None:
                on_layer(index + 1, self.num_layers)
        weights = self._weights(self.num_layers, tail)
        self._forget(self.num_layers)
        return [
            self._finish(tail, state, call, weights)
            for state, call in zip(states, calls, strict=True)
        ]

    def close(self) -> None:
        """See `Stack`."""
        self._loaded.clear()
        self._held.close()
        self._parts.close()

    def _layer(self, index: int, part: Part[Engine], *, masked: bool) -> tuple[Engine, Weights]:
        """What runs a layer, and the weights that it takes as inputs."""
        engine = part.engine_for(masked=masked)
        if isinstance(engine, LayerEngines):
            return self._held.get(index, part, engine), {}
        return engine, self._weights(index, part)

    def _weights(self, index: int, part: Part[Engine]) -> Weights:
        if index not in self._loaded:
            with span(WEIGHTS, f"layer {index + 1}"):
                self._loaded[index] = part.load()
        return self._loaded[index]

    def _forget(self, index: int) -> None:
        """Let go of a layer's weights, if they don't stay."""
        if not self._keep or index in self._streamed:
            self._loaded.pop(index, None)
            self._held.drop(index)

    def _start(self, head: Part[Engine], call: Call, weights: Weights) -> dict[str, Array]:
        state = dict(call.tensors)
        out = head.engine(_feeds(head, state, call, weights, None))
        state |= {self._parts.gives.get(name, name): array for name, array in out.items()}
        dtypes = {s.name: s.dtype for s in self._parts.tail.engine.spec.inputs}
        for collected, name in self._parts.collects.items():
            dtype = dtypes[collected]
            first = as_dtype(state[name], dtype)
            values = np.empty((self.num_layers + 1, *first.shape), NUMPY_DTYPES[dtype])
            values[0] = first
            state[collected] = values
        return state

    def _advance(self, state: dict[str, Array], out: Mapping[str, Array], done: int) -> None:
        for output, name in self._parts.gives.items():
            state[name] = out[output]
        for collected, name in self._parts.collects.items():
            dtype = self.dtype(collected)
            state[collected][done] = as_dtype(state[name], dtype)

    def _finish(
        self, tail: Part[Engine], state: dict[str, Array], call: Call, weights: Weights
    ) -> dict[str, Array]:
        out = tail.engine(_feeds(tail, state, call, weights, None))
        dtypes = {s.name: s.dtype for s in tail.engine.spec.outputs}
        return {name: as_float32(a, dtypes[name]) for name, a in out.items()}


@dataclass(frozen=True, slots=True, eq=False)
class HostConstants:
    """(tensor, dtype) -> array; those of `base` follow."""

    tensors: Mapping[tuple[str, str], Array]
    by_layer: Mapping[tuple[str, str], Array]
    base: HostConstants | None

    def find(self, name: str, dtype: str, layer: int | None) -> Array | None:
        """A tensor as layer number `layer` takes it; None if it is none of these."""
        if layer is not None and (name, dtype) in self.by_layer:
            rows: Array = self.by_layer[name, dtype]
            return np.asarray(rows[layer])
        found = self.tensors.get((name, dtype))
        return self.base.find(name, dtype, layer) if found is None and self.base else found

    def holds(self, names: Collection[str]) -> bool:
        """See `Constants`."""
        own = any(name in names for name, _ in (*self.tensors, *self.by_layer))
        return own or (self.base is not None and self.base.holds(names))

    def close(self) -> None:
        """Nothing to free: arrays go when nothing refers to them."""


def _feeds(
    part: Part[Engine],
    state: Mapping[str, Array],
    call: Call,
    weights: Weights,
    layer: int | None,
    engine: Engine | None = None,
) -> dict[str, Array]:
    """What an engine takes, in its dtypes; it says itself what is missing."""
    constants = call.constants
    if constants is not None and not isinstance(constants, HostConstants):
        raise InternalError("constants of another stack were given")
    feeds = dict(weights)
    for spec in (engine or part.engine).spec.inputs:
        name = part.takes.get(spec.name, spec.name)
        if spec.name in weights:  # low-rank inputs belong to the layer
            continue
        found = constants.find(name, spec.dtype, layer) if constants is not None else None
        if found is None and name in state:
            found = as_dtype(state[name], spec.dtype)
        if found is not None:
            feeds[spec.name] = found
    return feeds
