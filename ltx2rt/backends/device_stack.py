"""The stack on a device: everything between head and tail stays there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.layer_memory import LayerMemory
from ltx2rt.backends.stack import Call, Constants, OnLayer, Part, StackParts, ready
from ltx2rt.engine import Array, Engine, Shaped
from ltx2rt.errors import InternalError
from ltx2rt.weights.floats import as_float32

#: where a device lets tensors begin: rows that are taken one at a time start at multiples of it
ALIGNMENT = 256


class DeviceEngine(Engine, Protocol):
    """What a stack needs of an engine on a device; see `TrtEngine`."""

    def bind(
        self, tensors: Mapping[str, Shaped], place: Callable[[str, int], int] | None = None
    ) -> dict[str, DeviceTensor]: ...

    def bind_weights(self, weights: Mapping[str, Shaped]) -> None: ...

    def enqueue(self) -> None: ...


class DeviceStack:
    """A `Stack` whose engines share one device's memory and stream.

    Args:
        parts: closed with the stack.
        memory: that of all its engines, opened for the stack, which closes it.
        keep: hold weights: on the device as far as there is room, the others on the host, from
            where they go up at every use. Otherwise every call loads every layer anew.
    """

    def __init__(
        self, parts: StackParts[DeviceEngine], memory: DeviceMemory, *, keep: bool = True
    ) -> None:
        self._parts = parts
        self._dtypes = parts.dtypes()
        self._memory = memory
        self._weights = LayerMemory(memory, keep=keep)
        self._collected = {source: into for into, source in parts.collects.items()}
        self._closed = False

    @property
    def num_layers(self) -> int:
        return len(self._parts.layers)

    def dtype(self, name: str) -> str:
        """See `Stack`."""
        return self._dtypes[name][0]

    def begin(
        self,
        constants: Mapping[str, Array],
        by_layer: Mapping[str, Array] | None = None,
        base: Constants | None = None,
    ) -> DeviceConstants:
        """See `Stack`."""
        assert base is None or isinstance(base, DeviceConstants)
        self._memory.device.activate()
        begun = DeviceConstants(self._memory, base)
        for key, array in ready(constants, self._dtypes):
            begun.tensors[key] = self._memory.hold(array)
        for key, rows in ready(by_layer or {}, self._dtypes):
            begun.by_layer[key] = _hold_rows(self._memory, rows)
        return begun

    def __call__(
        self, calls: Sequence[Call], on_layer: OnLayer | None = None
    ) -> list[dict[str, Array]]:
        """See `Stack`."""
        self._memory.device.activate()
        states = [self._upload(number, call) for number, call in enumerate(calls)]
        self._run(self._parts.head, -1, states)
        for index, part in enumerate(self._parts.layers):
            self._run(part, index, states)
            if on_layer is not None:
                on_layer(index + 1, self.num_layers)
        outputs = self._run(self._parts.tail, self.num_layers, states)
        return self._download(outputs)

    def close(self) -> None:
        """See `Stack`."""
        if not self._closed:
            self._closed = True
            self._parts.close()
            self._memory.close()

    def _upload(self, number: int, call: Call) -> _State:
        if call.constants is not None and not isinstance(call.constants, DeviceConstants):
            raise InternalError("constants of another stack were given")
        tensors = {
            key: self._memory.upload(f"{number} {' '.join(key)}", array)
            for key, array in ready(call.tensors, self._dtypes)
        }
        return _State(number, tensors, call.constants)

    def _run(
        self, part: Part[DeviceEngine], index: int, states: Sequence[_State]
    ) -> list[dict[str, DeviceTensor]]:
        """Enqueue one part for all calls; `index`: -1 the head, `num_layers` the tail."""
        engine = part.engine
        found: list[dict[str, DeviceTensor]] = []
        weights = self._weights.given(index, part.load)
        for state in states:
            place = partial(self._place, index, state)
            outputs = engine.bind(self._feeds(part, index, state, weights), place)
            if not found:  # after the first `bind`, which takes scratch memory
                engine.bind_weights(self._weights.upload(index, weights))
            engine.enqueue()
            for output, tensor in outputs.items():
                state.tensors[self._key(engine, output)] = tensor
            if index < 0:
                self._collect(outputs, state)
            found.append(outputs)
        self._weights.ran()
        return found

    def _feeds(
        self, part: Part[DeviceEngine], index: int, state: _State, weights: Mapping[str, Shaped]
    ) -> dict[str, Shaped]:
        """What an engine takes but for its weights; it says itself what is missing."""
        feeds: dict[str, Shaped] = {}
        for spec in part.engine.spec.inputs:
            name = part.takes.get(spec.name, spec.name)
            if spec.name in weights:  # low-rank inputs belong to the layer
                feeds[spec.name] = weights[spec.name]
            elif (found := state.find(name, spec.dtype, index)) is not None:
                feeds[spec.name] = found
        return feeds

    def _place(self, index: int, state: _State, output: str, size: int) -> int:
        """Where an output goes: hidden states alternate between two buffers, or lie one after
        another where the tail takes all of them.
        """
        name = self._parts.gives.get(output, output)
        if name in self._collected:
            if size % ALIGNMENT:
                raise InternalError(f"{name} of {size} bytes cannot lie in a row with others")
            whole = self._memory.buffer(f"{state.number} {name}", size * (self.num_layers + 1))
            return whole + size * (index + 1)
        turn = (index + 1) % 2 if name in self._parts.gives.values() else 0
        return self._memory.buffer(f"{state.number} {name} {turn}", size)

    def _collect(self, outputs: Mapping[str, DeviceTensor], state: _State) -> None:
        """Give the tail what begins with the head's output and grows by every layer's."""
        for name, into in self._collected.items():
            first = outputs[name]
            shape = (self.num_layers + 1, *first.shape)
            dtype = _dtype(self._parts.head.engine, name)
            state.tensors[into, dtype] = DeviceTensor(shape, first.dtype, first.address)

    def _key(self, engine: DeviceEngine, output: str) -> tuple[str, str]:
        return self._parts.gives.get(output, output), _dtype(engine, output)

    def _download(self, outputs: Sequence[Mapping[str, DeviceTensor]]) -> list[dict[str, Array]]:
        arrays = [
            {n: np.empty(t.shape, t.dtype) for n, t in tensors.items()} for tensors in outputs
        ]
        for tensors, wanted in zip(outputs, arrays, strict=True):
            for name, array in wanted.items():
                self._memory.device.download(array, tensors[name].address)
        self._memory.synchronize()
        tail = self._parts.tail.engine
        return [{n: as_float32(a, _dtype(tail, n)) for n, a in wanted.items()} for wanted in arrays]


class DeviceConstants:
    """(tensor, dtype) -> where it is; those of `base` follow."""

    def __init__(self, memory: DeviceMemory, base: DeviceConstants | None) -> None:
        self._memory = memory
        self._base = base
        self.tensors: dict[tuple[str, str], DeviceTensor] = {}
        self.by_layer: dict[tuple[str, str], Sequence[DeviceTensor]] = {}

    def find(self, name: str, dtype: str, layer: int) -> DeviceTensor | None:
        """A tensor as layer number `layer` takes it; None if it is none of these."""
        if (name, dtype) in self.by_layer:
            return self.by_layer[name, dtype][layer]
        found = self.tensors.get((name, dtype))
        return self._base.find(name, dtype, layer) if found is None and self._base else found

    def close(self) -> None:
        """Free them; closing again, or after the stack, does nothing."""
        if not self._memory.closed:
            self._memory.device.activate()
        for tensor in (*self.tensors.values(), *(rows[0] for rows in self.by_layer.values())):
            self._memory.drop(tensor.address)
        self.tensors, self.by_layer = {}, {}


@dataclass(frozen=True, slots=True)
class _State:
    """What one call has on the device, by tensor and dtype."""

    number: int
    tensors: dict[tuple[str, str], DeviceTensor]
    constants: DeviceConstants | None

    def find(self, name: str, dtype: str, layer: int) -> DeviceTensor | None:
        """The tensor, if there is one in that dtype; else in another, which the engine refuses."""
        found = self.constants.find(name, dtype, layer) if self.constants else None
        if found is None and (name, dtype) not in self.tensors:
            return next((t for (n, _), t in self.tensors.items() if n == name), None)
        return self.tensors[name, dtype] if found is None else found


def _hold_rows(memory: DeviceMemory, rows: Array) -> Sequence[DeviceTensor]:
    """Upload `[layers, ...]` at once, each row where a tensor may begin."""
    size = rows[0].nbytes
    padded = np.zeros((len(rows), -(-size // ALIGNMENT) * ALIGNMENT), np.uint8)
    padded[:, :size] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), size)
    whole = memory.hold(padded)
    return [
        DeviceTensor(rows.shape[1:], rows.dtype, whole.address + index * padded.shape[1])
        for index in range(len(rows))
    ]


def _dtype(engine: Engine, output: str) -> str:
    return next(s.dtype for s in engine.spec.outputs if s.name == output)
