"""The GPU side: our kernels on torch's memory, timing with events and a cold L2."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ltx2rt_kernels import build, launch
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.expressions import evaluate, solve
from ltx2rt_kernels.spec import KernelSpec

#: bytes written between runs; several times the largest L2, and long enough to hide launches
FLUSH_BYTES = 512 * 2**20

WARM_UP_S = 0.2

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
}

#: enqueues work on the current stream
Run = Callable[[], object]

#: how compiling, loading and launching a kernel, torch's backends and allocations fail
FAILURES = (KernelError, RuntimeError)


def poisoned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory that holds NaN: what a kernel does not write shows."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((size,), 255, dtype=torch.uint8, device="cuda").view(dtype).view(*shape)


def answers() -> bool:
    """Whether this process can still use the GPU: after an illegal access it cannot."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def local_arch() -> str:
    """Architecture of our kernels for this GPU.

    Raises:
        KernelError: there is none.
    """
    capability = torch.cuda.get_device_capability()
    names = launch.ARTIFACTS_FOR.get(capability, ())
    if not names:
        raise KernelError(f"there are no kernels for compute capability {capability}")
    return names[0]


class Kernels:
    """Kernels for this GPU, loaded on first use; a context manager that unloads them.

    Args:
        directory: where those are compiled to that `artifacts` has not.
        artifacts: folder of compiled kernels (`python -m ltx2rt_kernels.build`).
    """

    def __init__(self, directory: Path, artifacts: Path | None = None) -> None:
        self._artifacts = artifacts
        self.arch = local_arch()
        self._directory = directory
        self._stack = ExitStack()
        self._loaded: dict[str, launch.Kernel] = {}

    def __enter__(self) -> Kernels:
        torch.cuda.init()
        torch.zeros(1, device="cuda")  # the driver's context is torch's from here on
        return self

    def __exit__(self, *_: object) -> None:
        if answers():  # a lost context took its modules along
            self._stack.close()

    def prepare(self, spec: KernelSpec, inputs: Mapping[str, Tensor]) -> tuple[Run, list[Tensor]]:
        """A launch on these inputs, and the outputs that it fills."""
        kernel = self._kernel(spec)
        sizes: dict[str, int] = dict(spec.sizes)
        for tensor in spec.operator.inputs:
            if problems := solve(tensor.shape, tuple(inputs[tensor.name].shape), sizes):
                raise KernelError(f"{spec.name}: {tensor.name} {problems}")
        outputs = {
            t.name: poisoned([evaluate(entry, sizes) for entry in t.shape], DTYPES[spec.dtype(t)])
            for t in spec.operator.outputs
        }
        everything = {**inputs, **outputs}
        enqueue = kernel.bind(
            {
                n: launch.Tensor(pointer=t.data_ptr(), shape=tuple(t.shape))
                for n, t in everything.items()
            }
        )

        def run() -> None:
            assert everything  # keeps the memory
            enqueue(torch.cuda.current_stream().cuda_stream)

        return run, list(outputs.values())

    def _kernel(self, spec: KernelSpec) -> launch.Kernel:
        if spec.name not in self._loaded:
            path = (self._artifacts or self._directory) / f"{spec.artifact_name(self.arch)}.json"
            if self._artifacts is None or not path.exists():
                self._directory.mkdir(parents=True, exist_ok=True)
                artifact = build.compile_kernel(spec, self.arch)
                artifact.write(self._directory)
                path = self._directory / f"{artifact.name}.json"
            self._loaded[spec.name] = self._stack.enter_context(launch.Kernel(path))
        return self._loaded[spec.name]

    def forget(self, spec: KernelSpec) -> None:
        """Unload a kernel, so that another configuration of it can be loaded."""
        torch.cuda.synchronize()
        if (kernel := self._loaded.pop(spec.name, None)) is not None:
            kernel.close()


def time_interleaved(
    runs: Mapping[str, Run], budget_s: float, *, least: int = 20, most: int = 100
) -> dict[str, list[float]]:
    """Seconds of every run, alternating, the L2 cold before each; warmed up by time.

    Ends after `most` rounds, or after `least` once the budget is spent.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for run in runs.values():
        until = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < until:
            run()
            torch.cuda.synchronize()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    until = time.perf_counter() + budget_s
    for i in range(most):
        if i >= least and time.perf_counter() > until:
            break
        events = {name: _timed(run, flush) for name, run in runs.items()}
        torch.cuda.synchronize()
        for name, (start, end) in events.items():
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return seconds


def _timed(run: Run, flush: Tensor) -> Sequence[torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    run()
    end.record()
    return start, end
