"""An execution context: what was set, what is refused, and the kernel that it enqueues."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltx2rt.engine import Array
from tests.simulator.engine_program import Boundary, Program

if TYPE_CHECKING:
    from tests.simulator.tensorrt import IRuntimeConfig, Library

ALIGNMENT = 256
CUDA_SUCCESS = 0


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ExecutionContext:
    """State as the library keeps it; every refusal is logged and returns False."""

    def __init__(self, library: Library, program: Program, config: IRuntimeConfig) -> None:
        self._library, self._program, self._config = library, program, config
        self._inputs = {t.name: t for t in program.inputs}
        self._outputs = {t.name: t for t in program.outputs}
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._warm: set[tuple[Any, ...]] = set()  # shapes that ran outside of a capture
        self._reset_shapes()

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    @property
    def all_binding_shapes_specified(self) -> bool:
        return self._shapes.keys() == self._inputs.keys()

    @property
    def device_memory(self) -> int:
        return self._scratch[0]

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < max(len(self._program.profiles), 1):
            return self._refuse(f"there is no profile {profile_index}")
        if self._library.driver.is_capturing(stream_handle):
            return self._refuse("a profile cannot be chosen while the stream is captured")
        if profile_index != self._profile:
            self._profile = profile_index
            self._reset_shapes()
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if not isinstance(shape, tuple | list):
            raise TypeError(f"set_input_shape(): incompatible function arguments: {shape!r}")
        tensor, given = self._inputs.get(name), tuple(int(d) for d in shape)
        if tensor is None:
            return self._refuse(f"{name} is no input")
        low, high = self._range(tensor)
        if len(given) != len(low) or not all(
            a <= d <= b for a, d, b in zip(low, given, high, strict=True)
        ):
            return self._refuse(
                f"shape {given} of {name} is not in {low}..{high} of profile {self._profile}"
            )
        self._shapes[name] = given
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tensor = self._inputs.get(name) or self._outputs[name]
        unknown = tuple(d if isinstance(d, int) else -1 for d in tensor.shape)
        if name in self._inputs:
            return self._shapes.get(name, unknown)
        return self._output_shapes()[name] if self.all_binding_shapes_specified else unknown

    def infer_shapes(self) -> list[str]:
        """Inputs that have no shape yet."""
        return [n for n in self._inputs if n not in self._shapes]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._inputs and name not in self._outputs:
            return self._refuse(f"{name} is no tensor of this engine")
        if int(memory) % ALIGNMENT:
            return self._refuse(f"the address of {name} is not a multiple of {ALIGNMENT}")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def update_device_memory_size_for_shapes(self) -> int:
        return self._program.scratch_bytes(self._shapes)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = (int(memory), int(size))

    def execute_async_v3(self, stream_handle: int) -> bool:
        driver = self._library.driver
        problem = self._problem(stream_handle)
        if problem:
            return self._refuse(problem)
        shapes = {**self._shapes, **self._output_shapes()}
        key = tuple(sorted(shapes.items()))
        if driver.is_capturing(stream_handle) and key not in self._warm:
            return self._refuse("these shapes must run once before they are captured")
        self._warm.add(key)
        self._compile(key)
        program, addresses = self._program, dict(self._addresses)
        scratch = (self._scratch[0], self.update_device_memory_size_for_shapes())
        device = driver.stream_device(stream_handle)
        reads = [_place(t, addresses, shapes) for t in program.inputs]
        writes = [_place(t, addresses, shapes) for t in program.outputs]
        if scratch[1]:
            writes.append(scratch)

        def run() -> None:
            _execute(driver, program, addresses, shapes, scratch, device)

        label = program.outputs[0].name
        contents = run if driver.setup.contents else _nothing
        code = driver.launch(stream_handle, contents, label, reads, writes)
        return code == CUDA_SUCCESS or self._refuse(f"the launch gives CUDA error {code}")

    def _problem(self, stream: int) -> str:
        if missing := self.infer_shapes():
            return f"no shape is set for {', '.join(missing)}"
        if unset := [n for n in (*self._inputs, *self._outputs) if not self._addresses.get(n)]:
            return f"Neither address nor allocator is set for {', '.join(unset)}"
        if not self._user_managed():
            return "only contexts whose memory the user manages are simulated"
        needed = self.update_device_memory_size_for_shapes()
        if self._scratch[1] < needed or (needed and not self._scratch[0]):
            return f"device memory of {self._scratch[1]} bytes is set, {needed} are needed"
        if self._scratch[0] % ALIGNMENT:
            return f"the address of the device memory is not a multiple of {ALIGNMENT}"
        capturing = self._library.driver.is_capturing(stream)
        if capturing and not self._can_be_captured():
            return "this context cannot be captured: choose EAGER or NONE, and user-managed memory"
        return ""

    def _user_managed(self) -> bool:
        strategy = self._config.get_execution_context_allocation_strategy()
        return strategy.name == "USER_MANAGED"

    def _can_be_captured(self) -> bool:
        """With kernels that stay, which TensorRT's always do."""
        strategy = getattr(self._config, "dynamic_shapes_kernel_specialization_strategy", None)
        return self._user_managed() and (strategy is None or strategy.name != "LAZY")

    def _compile(self, key: tuple[Any, ...]) -> None:
        get_cache = getattr(self._config, "get_runtime_cache", None)
        cache = get_cache() if get_cache is not None else None
        kernel = hashlib.sha256(repr((self._program.digest, key)).encode()).hexdigest()
        if cache is not None and kernel not in cache.kernels:
            cache.kernels.add(kernel)

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._program.output_shapes(self._shapes)

    def _reset_shapes(self) -> None:
        """Inputs of fixed shape have it."""
        self._shapes = {
            name: tuple(d for d in t.shape if isinstance(d, int))
            for name, t in self._inputs.items()
            if all(isinstance(d, int) for d in t.shape)
        }

    def _range(self, tensor: Boundary) -> tuple[tuple[int, ...], tuple[int, ...]]:
        profiles = self._program.profiles
        given = profiles[self._profile].get(tensor.name) if profiles else None
        if given is not None:
            return given[0], given[2]
        fixed = tuple(d for d in tensor.shape if isinstance(d, int))
        return fixed, fixed

    def _refuse(self, text: str) -> bool:
        self._library.log(Severity.ERROR, f"IExecutionContext: Error Code 3: {text}")
        return False


def _place(
    tensor: Boundary, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    return addresses[tensor.name], tensor.bytes_at(shapes[tensor.name])


def _nothing() -> None:
    pass


def _execute(
    driver: Any,
    program: Program,
    addresses: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    scratch: tuple[int, int],
    device: int,
) -> None:
    """Garbage in the scratch memory before and after: what lies there too is lost."""
    _scribble(driver, scratch, device, 0xA5)
    bits: dict[str, Array] = {}
    for tensor in program.inputs:
        address, size = _place(tensor, addresses, shapes)
        flat = driver.view(address, size, device).copy().view(tensor.carrier)
        packed = tensor.dtype == "int4"
        bits[tensor.name] = flat if packed else flat.reshape(shapes[tensor.name])
    results = program.run(bits)
    for tensor in program.outputs:
        address, size = _place(tensor, addresses, shapes)
        data = np.ascontiguousarray(results[tensor.name]).reshape(-1).view(np.uint8)
        driver.view(address, size, device)[:] = data
    _scribble(driver, scratch, device, 0x5A)


def _scribble(driver: Any, scratch: tuple[int, int], device: int, value: int) -> None:
    if scratch[1]:
        driver.view(*scratch, device)[:] = value
