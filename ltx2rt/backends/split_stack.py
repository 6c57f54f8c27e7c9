"""One stack on several devices: the passes of a step run side by side, a device each."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ltx2rt.backends.stack import Call, Constants, OnLayer, Stack
from ltx2rt.engine import Array
from ltx2rt.errors import InternalError


class SplitStack:
    """A `Stack` whose calls go to stacks on different devices in turn: the first call to the first
    of them. Devices exchange nothing but what calls take and give.

    Args:
        stacks: of the same components with the same weights; closed with this one.
    """

    def __init__(self, stacks: Sequence[Stack]) -> None:
        self._stacks = tuple(stacks)
        self._threads = ThreadPoolExecutor(len(stacks), thread_name_prefix="device")

    @property
    def num_layers(self) -> int:
        return self._stacks[0].num_layers

    def dtype(self, name: str) -> str:
        """See `Stack`."""
        return self._stacks[0].dtype(name)

    @property
    def masks(self) -> frozenset[str]:
        """See `Stack`."""
        return self._stacks[0].masks

    def begin(
        self,
        constants: Mapping[str, Array],
        by_layer: Mapping[str, Array] | None = None,
        base: Constants | None = None,
    ) -> SplitConstants:
        """See `Stack`; a device gets them when its first call takes them."""
        assert base is None or isinstance(base, SplitConstants)
        return SplitConstants(self._stacks, dict(constants), dict(by_layer or {}), base)

    def __call__(
        self, calls: Sequence[Call], on_layer: OnLayer | None = None
    ) -> list[dict[str, Array]]:
        """See `Stack`; `on_layer` hears of the first device."""
        count = len(self._stacks)
        turns = [range(number, len(calls), count) for number in range(count)]

        def run(number: int) -> list[dict[str, Array]]:
            mine = [_on(calls[index], number) for index in turns[number]]
            return self._stacks[number](mine, on_layer if number == 0 else None) if mine else []

        results: list[dict[str, Array]] = [{} for _ in calls]
        running = [self._threads.submit(run, number) for number in range(count)]
        for turn, done in zip(turns, [future.result() for future in running], strict=True):
            for index, result in zip(turn, done, strict=True):
                results[index] = result
        return results

    def close(self) -> None:
        """See `Stack`."""
        self._threads.shutdown()
        for stack in self._stacks:
            stack.close()


class SplitConstants:
    """What `SplitStack.begin` holds: arrays, and what the devices that took them hold."""

    def __init__(
        self,
        stacks: Sequence[Stack],
        constants: Mapping[str, Array],
        by_layer: Mapping[str, Array],
        base: SplitConstants | None,
    ) -> None:
        self._stacks = stacks
        self._constants = constants
        self._by_layer = by_layer
        self._base = base
        self._held: dict[int, Constants] = {}
        self._lock = threading.Lock()

    def on(self, number: int) -> Constants:
        """Those of one stack."""
        base = None if self._base is None else self._base.on(number)
        with self._lock:
            held = self._held.get(number)
        if held is None:
            held = self._stacks[number].begin(self._constants, self._by_layer, base)
            with self._lock:
                self._held[number] = held
        return held

    def holds(self, names: Collection[str]) -> bool:
        """See `Constants`."""
        own = any(name in names for name in (*self._constants, *self._by_layer))
        return own or (self._base is not None and self._base.holds(names))

    def close(self) -> None:
        """See `Constants`."""
        for held in self._held.values():
            held.close()
        self._held = {}


def _on(call: Call, number: int) -> Call:
    """A call as one of the stacks takes it."""
    if call.constants is None:
        return call
    if not isinstance(call.constants, SplitConstants):
        raise InternalError("constants of another stack were given")
    return Call(call.tensors, call.constants.on(number))
