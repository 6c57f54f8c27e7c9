"""Latents that stay on a device through a stage: the arithmetic between its passes runs there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ltx2rt.backends.binding import Binding
from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor, placed
from ltx2rt.backends.replays import Replays
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.device.arena import ALIGNMENT, Arena, aligned
from ltx2rt.engine import F32, NUMPY_DTYPES, Array
from ltx2rt.names import STEP_EULER, STEP_NOISY
from ltx2rt.sampling.step_numbers import PASSES
from ltx2rt.trace import COMPUTE

_F32 = np.dtype(np.float32)


class DeviceSteps:
    """The step arithmetic of a stack on its device.

    Args:
        euler, noisy: engines of the device graphs of these names.
    """

    def __init__(self, euler: TrtEngine, noisy: TrtEngine) -> None:
        self.engines: Mapping[str, TrtEngine] = {STEP_EULER: euler, STEP_NOISY: noisy}
        self.memory: DeviceMemory = euler.memory
        taken = [spec.dtype for spec in euler.spec.outputs if spec.name == "taken"]
        self.dtype = NUMPY_DTYPES[taken[0]] if taken else _F32

    def reason_against(self, shapes: Sequence[tuple[int, int]]) -> str | None:
        """Why latents of these tokens and channels cannot stay on the device; None: they can."""
        buckets = self.engines[STEP_EULER].buckets
        for tokens, channels in shapes:
            if not any(b.holds({"T": tokens, "C": channels}) for b in buckets):
                return f"steps of {tokens} tokens were not built for the device"
        needed = sum(latent_bytes(tokens, channels, self.dtype) for tokens, channels in shapes)
        if needed > self.memory.tensors.gap():
            return "no memory of the device is planned for them"
        return None

    @contextmanager
    def begin(
        self, states: Mapping[str, tuple[Array, Array, Array]], step: str
    ) -> Iterator[DeviceLatents]:
        """Latents of a stage.

        Args:
            states: modality -> latent, clean tokens `[1, T, C]`, and mask `[1, T, 1]`, float32.
            step: `STEP_EULER` or `STEP_NOISY`.
        """
        latents = DeviceLatents(self, states, step)
        try:
            yield latents
        finally:
            latents.close()


@dataclass(slots=True)
class _Latent:
    """What one modality holds: blocks by name, and the context that its steps run in."""

    block: int
    shape: tuple[int, int]
    at: Mapping[str, int]
    binding: Binding


class DeviceLatents:
    """The latents of one stage; see `DeviceSteps.begin`."""

    def __init__(
        self, owner: DeviceSteps, states: Mapping[str, tuple[Array, Array, Array]], step: str
    ) -> None:
        self._memory = owner.memory
        self._device = owner.memory.device
        self._engine = owner.engines[step]
        self._dtype = owner.dtype
        self._held: dict[str, _Latent] = {}
        inputs = {spec.name: spec.shape for spec in self._engine.spec.inputs}
        self._named, self._numbers = tuple(inputs), tuple(map(int, inputs["numbers"]))
        #: graphs of whole steps: passes and what follows them
        self.replays = Replays[None](owner.memory)
        with self._memory.using():
            for modality, (latent, clean, mask) in states.items():
                self._held[modality] = self._hold(latent[0], clean[0], mask[0])

    def taken(self, modality: str) -> DeviceTensor:
        """The latent `[1, T, C]` as the transformer takes it now; it stays where it is."""
        held = self._held[modality]
        return DeviceTensor((1, *held.shape), self._dtype, held.at["taken"])

    def prepare(self, modality: str, numbers: F32, noise: Array | None = None) -> None:
        """Send what the next step takes.

        Args:
            numbers: of this step, see `step_numbers`.
            noise: `[1, T, C]` float32, for noisy steps; None: there is none in this one.
        """
        held = self._held[modality]
        with self._memory.using():
            self._send(numbers, held.at["numbers"])
            if noise is not None:
                self._send(noise, held.at["noise"])

    def enqueue(self, outputs: Mapping[str, Mapping[str, DeviceTensor]]) -> None:
        """Enqueue the step of every modality, with what `prepare` sent.

        Args:
            outputs: pass -> what the transformer gave; `cond` stands for those that did not run.
        """
        compute = self._device.compute
        for modality, held in self._held.items():
            name = f"{modality}_velocity"
            given = {n: outputs.get(n, outputs["cond"])[name] for n in PASSES}
            feeds = {n: DeviceTensor(held.shape, v.dtype, v.address) for n, v in given.items()} | {
                n: DeviceTensor(held.shape, _F32, held.at[n]) for n in ("latent", "clean", "noise")
            }
            feeds["mask"] = DeviceTensor((held.shape[0], 1), _F32, held.at["mask"])
            feeds["numbers"] = DeviceTensor(self._numbers, _F32, held.at["numbers"])
            held.binding.bind({n: feeds[n] for n in self._named}, placed(held.at))
            with self._memory.timeline.span(compute, COMPUTE, f"{modality} step"):
                self._engine.run(held.binding)
                size = math.prod(held.shape) * _F32.itemsize
                self._device.copy_within(held.at["latent"], held.at["next"], size, compute)

    def can_be_captured(self) -> bool:
        """Whether the library lets steps be captured, once they ran."""
        compute = self._device.compute
        return all(held.binding.can_be_captured(compute) for held in self._held.values())

    def finish(self) -> dict[str, int]:
        """Wait for the step: modality -> how many values of its latent are NaN or infinite."""
        counts = {modality: np.zeros(1, np.int32) for modality in self._held}
        with self._memory.using():
            wanted = [(c, self._held[m].at["not_finite"]) for m, c in counts.items()]
            self._memory.staging.receive(wanted, self._device.compute)
            self._memory.timeline.collect()
        return {modality: int(count[0]) for modality, count in counts.items()}

    def read(self) -> dict[str, F32]:
        """The latents `[1, T, C]` as they are now."""
        found = {m: np.empty((1, *held.shape), np.float32) for m, held in self._held.items()}
        with self._memory.using():
            wanted = [(a, self._held[m].at["latent"]) for m, a in found.items()]
            self._memory.staging.receive(wanted, self._device.compute)
        return found

    def close(self) -> None:
        """Free them, once nothing uses them."""
        with self._memory.using():
            self._device.finish(self._device.compute)
            self.replays.close()
            while self._held:
                self._memory.tensors.give(self._held.popitem()[1].block)

    def _hold(self, latent: Array, clean: Array, mask: Array) -> _Latent:
        shape = latent.shape[0], latent.shape[1]
        size = latent_bytes(*shape, self._dtype)
        block = self._memory.tensors.take(size, "latents")
        arena = Arena(block, size, "latents")
        at = {n: arena.take(s, n) for n, s in _blocks(*shape, self._dtype).items()}
        at.setdefault("taken", at["latent"])
        self._send(latent, at["latent"])
        self._send(clean, at["clean"])
        self._send(mask, at["mask"])
        self._device.clear(at["noise"], math.prod(shape) * _F32.itemsize, self._device.compute)
        if self._dtype != _F32:
            self._send(as_taken(latent, self._dtype), at["taken"])
        return _Latent(block, shape, at, self._engine.new_binding())

    def _send(self, array: Array, address: int) -> None:
        self._memory.staging.send(np.ascontiguousarray(array), address, self._device.compute)


def as_taken(latent: Array, dtype: np.dtype[np.generic]) -> Array:
    """A latent in the dtype of the transformer's boundary."""
    from ltx2rt.weights.floats import as_dtype

    return as_dtype(latent, next(n for n, d in NUMPY_DTYPES.items() if d == dtype))


def latent_bytes(tokens: int, channels: int, dtype: np.dtype[np.generic]) -> int:
    """Memory of what a modality holds through a stage."""
    return sum(aligned(n) for n in _blocks(tokens, channels, dtype).values())


def _blocks(tokens: int, channels: int, dtype: np.dtype[np.generic]) -> dict[str, int]:
    whole = tokens * channels * _F32.itemsize
    blocks = dict.fromkeys(("latent", "next", "clean", "noise"), whole)
    blocks |= {"mask": tokens * _F32.itemsize, "numbers": ALIGNMENT, "not_finite": ALIGNMENT}
    return blocks if dtype == _F32 else blocks | {"taken": tokens * channels * dtype.itemsize}
