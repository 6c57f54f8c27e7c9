"""Run Triton kernels on a CPU, in Triton's interpreter.

The interpreter must be chosen before Triton is imported, so it lives in a process of its own (the
`interpreter` fixture); functions here marked "worker" run there. Buffers are surrounded by NaN, so
that a read outside shows in the result, and outputs start as NaN, so that a gap does.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ltx2rt_kernels import build
from ltx2rt_kernels.expressions import evaluate, solve
from ltx2rt_kernels.spec import KernelSpec

GUARD = 256  # elements on both sides of a buffer

#: a NaN of every float type, for what must not be read; a number, which no NaN read outside equals,
#: for what must not be written
NAN_BYTE, PLAIN_BYTE = 0xFF, 0x55

TORCH_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
    "i32": torch.int32,
    "i64": torch.int64,
}

R = TypeVar("R")

#: worker: the repairs in force
APPLIED: list[Repairs] = []


class Interpreter:
    """The process in which kernels are interpreted."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker)

    def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Result of a worker function; arguments and result are pickled."""
        return self._pool.submit(function, *arguments).result()

    def run(
        self, spec: KernelSpec, inputs: Mapping[str, Tensor], arch: str | None = None
    ) -> dict[str, Tensor]:
        """Outputs of a kernel by name, with the tiles of `arch` or of its first architecture."""
        packed = {name: _Packed.of(t) for name, t in inputs.items()}
        arch = arch or next(iter(spec.configs))
        return {n: p.tensor() for n, p in self.call(run_kernel, spec, arch, packed).items()}

    def close(self) -> None:
        self._pool.shutdown()


@dataclass(frozen=True)
class _Packed:
    """A tensor that pickles without torch's shared memory."""

    data: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Packed:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        return cls(flat.numpy().tobytes(), tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        return torch.frombuffer(bytearray(self.data), dtype=self.dtype).reshape(self.shape)


def start_worker() -> None:
    """Worker: choose the interpreter; nothing has imported Triton yet in a spawned process."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    repair(Repairs())


class Repairs:
    """Worker: what the interpreter of Triton 3.6 to 3.9 gets wrong, and what it should do.

    It holds bfloat16 as uint16 and multiplies the bit patterns in `tl.dot`; it truncates where a
    GPU rounds to nearest (bfloat16), and loses the carry into the exponent when it rounds (fp8).
    """

    def __init__(self) -> None:
        from triton.runtime import interpreter

        self.own_dot = interpreter.InterpreterBuilder.create_dot
        self.own_convert = interpreter._convert_float

    def dot(self, builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return self.own_dot(builder, _widen_bf16(a), _widen_bf16(b), *rest)

    def convert(self, value: Any, source: Any, target: Any, rounding: Any) -> Any:
        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        dtypes |= {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
        if str(source) not in dtypes or str(target) not in dtypes:
            return self.own_convert(value, source, target, rounding)
        exact = torch.frombuffer(bytearray(value.tobytes()), dtype=dtypes[str(source)])
        bits = exact.to(dtypes[str(target)]).view(torch.uint8).numpy()
        return bits.view(f"u{target.primitive_bitwidth // 8}").reshape(value.shape)


def repair(repairs: Repairs) -> None:
    """Worker: apply them."""
    APPLIED.append(repairs)
    from triton.runtime import interpreter

    def create_dot(builder: Any, *arguments: Any) -> Any:
        return repairs.dot(builder, *arguments)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = repairs.convert


def _widen_bf16(handle: Any) -> Any:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(wide, tl.float32)


def run_kernel(spec: KernelSpec, arch: str, inputs: Mapping[str, _Packed]) -> dict[str, _Packed]:
    """Worker: allocate, launch, check that nothing was written outside."""
    function = build.load_function(spec)
    passed, constants = build.kernel_arguments(spec, arch, function.arg_names)
    sizes: dict[str, int] = dict(spec.sizes)
    buffers: dict[str, Tensor] = {}
    for tensor in spec.operator.inputs:
        if tensor.name in inputs:
            value = inputs[tensor.name].tensor()
            assert value.dtype == TORCH_DTYPES[spec.dtype(tensor)], tensor.name
            assert not solve(tensor.shape, tuple(value.shape), sizes), tensor.name
            buffers[tensor.name] = guarded(value, NAN_BYTE)
    for tensor in spec.operator.outputs:
        shape = tuple(evaluate(entry, sizes) for entry in tensor.shape)
        empty = filled(math.prod(shape), TORCH_DTYPES[spec.dtype(tensor)], NAN_BYTE)
        buffers[tensor.name] = guarded(empty.view(shape), PLAIN_BYTE)
    known = {**spec.configs[arch].tiles, **sizes}
    scalars = {s.name: evaluate(s.value, known) for s in spec.scalars}
    arguments = {
        name: scalars[name] if name in scalars else buffers[name.removesuffix("_ptr")]
        for name in passed
    }
    grid = tuple(evaluate(text, known) for text in spec.grid)
    function[grid](**arguments, **constants)
    for name, buffer in buffers.items():
        assert is_guarded(buffer), f"{name}: the kernel wrote outside of it"
    return {t.name: _Packed.of(buffers[t.name]) for t in spec.operator.outputs}


def filled(count: int, dtype: torch.dtype, byte: int) -> Tensor:
    """Memory full of one byte."""
    return torch.full((count * dtype.itemsize,), byte, dtype=torch.uint8).view(dtype)


def guarded(value: Tensor, byte: int) -> Tensor:
    """A copy of `value` inside a larger buffer full of `byte`."""
    inside = filled(value.numel() + 2 * GUARD, value.dtype, byte)[GUARD:-GUARD]
    return inside.view(value.shape).copy_(value)


def is_guarded(inside: Tensor) -> bool:
    """Whether the surroundings of a `guarded` tensor are as they were: all one byte."""
    size = GUARD * inside.dtype.itemsize
    buffer = torch.empty(0, dtype=torch.uint8).set_(inside.untyped_storage())
    around = torch.cat([buffer[:size], buffer[-size:]])
    return bool((around == around[0]).all())
