"""The stack on a device: everything between head and tail stays there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from ltx2rt.backends.binding import Place
from ltx2rt.backends.device_constants import DeviceConstants, Outputs
from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.layer_memory import RING, LayerMemory
from ltx2rt.backends.replays import Replays
from ltx2rt.backends.stack import Call, Constants, OnLayer, StackParts, is_masked, ready
from ltx2rt.device.arena import ALIGNMENT, aligned
from ltx2rt.device.device import Stream
from ltx2rt.engine import Array, Engine, Shaped
from ltx2rt.errors import InternalError
from ltx2rt.trace import COMPUTE
from ltx2rt.weights.floats import as_float32


class Binding(Protocol):
    """What is set in an engine; see `binding.Binding`."""

    def bind(self, feeds: Mapping[str, DeviceTensor], place: Place) -> dict[str, DeviceTensor]: ...

    def can_be_captured(self, stream: Stream) -> bool: ...


class DeviceEngine(Engine, Protocol):
    """What a stack needs of an engine on a device; see `TrtEngine`. Bindings are its own."""

    def new_binding(self) -> Binding: ...

    def bind_weights(self, weights: Mapping[str, Shaped], binding: Any) -> None: ...

    def run(self, binding: Any) -> None: ...


class Step(Protocol):
    """What becomes of the outputs of passes on the device; see `DeviceLatents`."""

    @property
    def replays(self) -> Replays[None]: ...

    def enqueue(self, outputs: Mapping[str, Outputs]) -> None: ...

    def can_be_captured(self) -> bool: ...


class DeviceStack:
    """A `Stack` whose engines share one device's memory and streams.

    Args:
        parts: closed with the stack.
        memory: that of all its engines, opened for the stack, which closes it.
        keep: hold weights: on the device as far as there is room, the others on the host, from
            where they go up at every use. Otherwise every call loads every layer anew.
        graphs: passes whose weights are all on the device are captured when they run for the
            second time, and replayed from then on.
        places, left_free: see `LayerMemory`.
    """

    def __init__(
        self,
        parts: StackParts[DeviceEngine],
        memory: DeviceMemory,
        *,
        keep: bool = True,
        graphs: bool = True,
        places: Sequence[int] = (0,) * RING,
        left_free: int = 0,
    ) -> None:
        self._parts = parts
        self._sequence = tuple(parts)
        self._dtypes = parts.dtypes()
        self._masks = parts.masks
        self._memory = memory
        loads = [p.load for p in self._sequence]
        self._weights = LayerMemory(memory, loads, keep=keep, places=places, left_free=left_free)
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._each = keep  # a context for every part, or for every engine
        self._graphs = graphs
        self._begun = 0
        self._collected = {source: into for into, source in parts.collects.items()}
        self._closed = False

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
    ) -> DeviceConstants:
        """See `Stack`."""
        assert base is None or isinstance(base, DeviceConstants)
        with self._memory.using():
            begun = DeviceConstants(self._memory, base, self._ended)
            self._begun += 1
            for key, array in ready(constants, self._dtypes):
                begun.tensors[key] = self._memory.hold(array)
            for key, rows in ready(by_layer or {}, self._dtypes):
                begun.by_layer[key] = _hold_rows(self._memory, rows)
        return begun

    def __call__(
        self, calls: Sequence[Call], on_layer: OnLayer | None = None
    ) -> list[dict[str, Array]]:
        """See `Stack`."""
        with self._memory.using():
            in_turn = self._each and on_layer is None
            shared: dict[tuple[int, str], DeviceTensor] = {}
            states = [
                self._upload(n, 0 if in_turn else n, call, shared) for n, call in enumerate(calls)
            ]
            if in_turn:  # all are enqueued, and waited for once
                outputs = [self._pass(state) for state in states]
            else:
                outputs = self._enqueue(states, on_layer)
            results = self._download(outputs)
            self._memory.timeline.collect()
            if not self._begun and self._memory.is_planned:
                self._memory.drop_buffers()
        return results

    def step(self, calls: Sequence[Call], names: Sequence[str], step: Step) -> None:
        """Enqueue passes, and what is done with their outputs: as one graph, if the same were
        enqueued before. Nothing is waited for.

        Args:
            calls: their tensors may lie on the device already, in the dtype that the head takes.
            names: of the calls, for `step`.
        """
        with self._memory.using():
            shared: dict[tuple[int, str], DeviceTensor] = {}
            states = [self._upload(n, 0, call, shared) for n, call in enumerate(calls)]
            passes = [
                (name, s.constants, *_facts(s)) for name, s in zip(names, states, strict=True)
            ]

            def enqueue() -> None:
                found = [self._enqueue([state], None)[0] for state in states]
                step.enqueue(dict(zip(names, found, strict=True)))

            step.replays.run(
                tuple(passes),
                enqueue,
                name=f"{self._parts.head.engine.spec.component} to step",
                steady=self._weights.settled,
                may_capture=lambda: self._can_be_captured() and step.can_be_captured(),
            )

    def close(self) -> None:
        """See `Stack`."""
        if not self._closed:
            self._closed = True
            self._memory.device.activate()
            self._memory.finish()
            self._memory.timeline.collect()
            self._bindings.clear()
            self._weights.close()
            if self._memory.is_planned:
                self._memory.drop_buffers()
            self._parts.close()
            self._memory.close()

    def _ended(self) -> None:
        """Constants are closed; with the last ones, a stage is over."""
        self._begun -= 1
        if not self._begun and self._memory.is_planned and not self._memory.closed:
            self._memory.drop_buffers()

    def _upload(
        self,
        number: int,
        lane: int,
        call: Call,
        shared: dict[tuple[int, str], DeviceTensor],
    ) -> _State:
        """The tensors of a call on the device.

        Args:
            shared: (an array of earlier calls, dtype) -> where it is; those of this one come to it.
        """
        if call.constants is not None and not isinstance(call.constants, DeviceConstants):
            raise InternalError("constants of another stack were given")
        tensors: dict[tuple[str, str], DeviceTensor] = {}
        for name, given in call.tensors.items():
            if isinstance(given, DeviceTensor):
                tensors[name, self.dtype(name)] = given
                continue
            for dtype in self._dtypes.get(name, ()):
                if (id(given), dtype) not in shared:
                    ((key, array),) = ready({name: given}, {name: (dtype,)})
                    held = self._memory.upload(f"{number} {' '.join(key)}", array)
                    shared[id(given), dtype] = held
                tensors[name, dtype] = shared[id(given), dtype]
        masked = is_masked(call.constants, self._masks)
        return _State(number, lane, tensors, call.constants, masked)

    def _pass(self, state: _State) -> Outputs:
        """One pass: as a graph, if it ran before with the same weights, constants and addresses."""
        constants = state.constants
        if constants is None:
            return self._enqueue([state], None)[0]
        return constants.replays.run(
            tuple(_facts(state)),
            lambda: self._enqueue([state], None)[0],
            name=f"{self._parts.head.engine.spec.component} to tail",
            steady=self._weights.settled,
            may_capture=self._can_be_captured,
        )

    def _can_be_captured(self) -> bool:
        if not (self._weights.settled and self._graphs):
            return False
        compute = self._memory.device.compute
        return all(b.can_be_captured(compute) for b in self._bindings.values())

    def _enqueue(self, states: Sequence[_State], on_layer: OnLayer | None) -> list[Outputs]:
        self._run(0, states)
        for number in range(1, self.num_layers + 1):
            self._run(number, states)
            if on_layer is not None:
                on_layer(number, self.num_layers)
        return self._run(self.num_layers + 1, states)

    def _run(self, number: int, states: Sequence[_State]) -> list[Outputs]:
        """Enqueue one part for all calls; 0 is the head."""
        part = self._sequence[number]
        found: list[Outputs] = []
        weights = self._weights.use(number)
        for state in states:
            engine = part.engine_for(masked=state.masked)
            binding = self._binding(number, engine)
            feeds = self._feeds(part.takes, engine, number - 1, state, weights)
            outputs = binding.bind(feeds, partial(self._place, number, state))
            engine.bind_weights(weights, binding)
            with self._span(f"{engine.spec.component} {number}"):
                engine.run(binding)
            for output, tensor in outputs.items():
                state.tensors[self._key(engine, output)] = tensor
            if number == 0:
                self._collect(outputs, state)
            found.append(outputs)
        self._weights.ran(number)
        return found

    def _span(self, name: str) -> AbstractContextManager[None]:
        """What is enqueued meanwhile, in a trace."""
        return self._memory.timeline.span(self._memory.device.compute, COMPUTE, name)

    def _binding(self, number: int, engine: DeviceEngine) -> Binding:
        key = number if self._each else 0, id(engine)
        if key not in self._bindings:
            self._bindings[key] = engine.new_binding()
        return self._bindings[key]

    def _feeds(
        self,
        takes: Mapping[str, str],
        engine: DeviceEngine,
        index: int,
        state: _State,
        weights: Mapping[str, DeviceTensor],
    ) -> dict[str, DeviceTensor]:
        """What an engine takes but for its weights; it says itself what is missing."""
        feeds: dict[str, DeviceTensor] = {}
        for spec in engine.spec.inputs:
            name = takes.get(spec.name, spec.name)
            if spec.name in weights:  # low-rank inputs belong to the layer
                feeds[spec.name] = weights[spec.name]
            elif (found := state.find(name, spec.dtype, index)) is not None:
                feeds[spec.name] = found
        return feeds

    def _place(self, number: int, state: _State, output: str, size: int) -> int:
        """Where an output goes: hidden states alternate between two buffers, or lie one after
        another where the tail takes all of them.
        """
        name = self._parts.gives.get(output, output)
        if name in self._collected:
            if size % ALIGNMENT:
                raise InternalError(f"{name} of {size} bytes cannot lie in a row with others")
            whole = self._memory.buffer(f"{state.lane} {name}", size * (self.num_layers + 1))
            return whole + size * number
        turn = number % 2 if name in self._parts.gives.values() else 0
        given = number > self.num_layers  # what the tail gives waits for the other calls
        lane = f"out {state.number}" if given else str(state.lane)
        return self._memory.buffer(f"{lane} {name} {turn}", size)

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
        wanted = [
            (array, tensors[name].address)
            for tensors, found in zip(outputs, arrays, strict=True)
            for name, array in found.items()
        ]
        self._memory.staging.receive(wanted, self._memory.device.compute)
        tail = self._parts.tail.engine
        return [{n: as_float32(a, _dtype(tail, n)) for n, a in found.items()} for found in arrays]


@dataclass(frozen=True, slots=True)
class _State:
    """What one call has on the device, by tensor and dtype, and whether it has masks. Calls of one
    lane run one after another, in the same hidden states.
    """

    number: int
    lane: int
    tensors: dict[tuple[str, str], DeviceTensor]
    constants: DeviceConstants | None
    masked: bool

    def find(self, name: str, dtype: str, layer: int) -> DeviceTensor | None:
        """The tensor, if there is one in that dtype; else in another, which the engine refuses."""
        found = self.constants.find(name, dtype, layer) if self.constants else None
        if found is None and (name, dtype) not in self.tensors:
            return next((t for (n, _), t in self.tensors.items() if n == name), None)
        return self.tensors[name, dtype] if found is None else found


def _facts(state: _State) -> list[tuple[tuple[str, str], tuple[Any, ...]]]:
    """What a graph of a pass over the tensors of a call depends on."""
    return sorted((n, (t.shape, t.dtype.str, t.address)) for n, t in state.tensors.items())


def _hold_rows(memory: DeviceMemory, rows: Array) -> Sequence[DeviceTensor]:
    """Upload `[layers, ...]` at once, each row where a tensor may begin."""
    size = rows[0].nbytes
    padded = np.zeros((len(rows), aligned(size)), np.uint8)
    padded[:, :size] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), size)
    whole = memory.hold(padded)
    return [
        DeviceTensor(rows.shape[1:], rows.dtype, whole.address + index * padded.shape[1])
        for index in range(len(rows))
    ]


def _dtype(engine: Engine, output: str) -> str:
    return next(s.dtype for s in engine.spec.outputs if s.name == output)
