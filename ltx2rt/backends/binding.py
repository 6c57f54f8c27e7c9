"""An execution context with what is set in it: the library is called only for what changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.bundle.buckets import choose_bucket, symbol_sizes
from ltx2rt.bundle.engine_file import EngineInfo
from ltx2rt.device.device import Stream
from ltx2rt.engine import NUMPY_DTYPES, EngineSpec, check_inputs
from ltx2rt.errors import EngineError

#: (output, bytes) -> the address where it goes
Place = Callable[[str, int], int]


class Binding:
    """One execution context of an engine.

    Args:
        context: the library's; its memory is the user's.
        names: the tensors that the engine has.
        label: of the library, with its version.
        said: why it refused something.
    """

    def __init__(
        self,
        context: Any,
        spec: EngineSpec,
        info: EngineInfo,
        names: set[str],
        memory: DeviceMemory,
        label: str,
        said: Callable[[], str],
    ) -> None:
        self._context = context
        self._spec = spec
        self._info = info
        self._names = names
        self._memory = memory
        self._label = label
        self._said = said
        self._profile = -1
        self._feeds: dict[str, DeviceTensor] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, -1)

    def bind(self, feeds: Mapping[str, DeviceTensor], place: Place) -> dict[str, DeviceTensor]:
        """Set profile, shapes and addresses of inputs, outputs and scratch memory.

        Args:
            place: says where outputs go, never over an input.

        Returns:
            where the outputs will be.
        """
        if feeds != self._feeds:
            check_inputs(self._spec, feeds)
            self._feeds = None  # what is set does not fit them until all of it is
            self._set_shapes(feeds)
            for spec in self._spec.inputs:
                if spec.name in self._names:
                    self.set_address(spec.name, feeds[spec.name].address)
            self._feeds = dict(feeds)
        outputs = {}
        for tensor in self._spec.outputs:
            shape, dtype = self._outputs[tensor.name], NUMPY_DTYPES[tensor.dtype]
            address = place(tensor.name, math.prod(shape) * dtype.itemsize)
            self.set_address(tensor.name, address)
            outputs[tensor.name] = DeviceTensor(shape, dtype, address)
        self._set_scratch()
        return outputs

    def set_address(self, name: str, address: int) -> None:
        """Where a tensor is."""
        if self._addresses.get(name) != address:
            self.ok(self._context.set_tensor_address(name, address), f"the address of {name}")
            self._addresses[name] = address

    def enqueue(self, stream: Stream) -> None:
        """Run on a stream with what is set, without waiting."""
        self.ok(self._context.execute_async_v3(int(stream.handle)), "the run")

    def can_be_captured(self, stream: Stream) -> bool:
        """Whether the library lets a stream be captured that this runs on; TensorRT always does."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(int(stream.handle)))

    def ok(self, done: bool, what: str) -> None:
        """Check what the library answers.

        Raises:
            EngineError: it refused.
            DeviceLostError: since the GPU is lost.
        """
        if not done:
            self._memory.device.raise_if_lost()
            name = self._spec.component
            raise EngineError(f"{self._label} refuses {what} in {name}: {self._said()}")

    def _set_shapes(self, feeds: Mapping[str, DeviceTensor]) -> None:
        shapes = {t.name: feeds[t.name].shape for t in self._spec.inputs}
        if shapes == self._shapes:
            return
        self._shapes = {}
        wanted: dict[str, Sequence[int | str]] = {t.name: t.shape for t in self._spec.inputs}
        sizes = symbol_sizes(wanted, shapes)
        profile = choose_bucket(self._spec.component, self._info.buckets, sizes)
        if profile != self._profile:
            stream = int(self._memory.device.compute.handle)
            done = self._context.set_optimization_profile_async(profile, stream)
            self.ok(done, f"profile {profile}")
            self._profile = profile
        for name, shape in shapes.items():
            if name in self._names:
                self.ok(self._context.set_input_shape(name, shape), f"the shape of {name}")
        self._outputs = {
            t.name: tuple(self._context.get_tensor_shape(t.name)) for t in self._spec.outputs
        }
        self._scratch = 0, int(self._context.update_device_memory_size_for_shapes())
        self._shapes = shapes

    def _set_scratch(self) -> None:
        """Give the context the memory that its activations need at these shapes."""
        set_to, size = self._scratch
        address = self._memory.scratch(size)
        if address != set_to:
            self._context.set_device_memory(address, size)
            self._scratch = address, size
