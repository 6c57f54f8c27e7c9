"""A GPU through cuda.core, and cuda.bindings where that has no call: context, streams, memory,
copies, graphs. cuda-python is optional and imported only when something here is called.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx2rt.device.device import Box, Device, Event, Graph, Mark, Pinned, Stream
from ltx2rt.device.gpus import Gpu, check, driver_cuda, find_device, load_driver, local_gpu
from ltx2rt.device.lost import Loss, loss_in, lost
from ltx2rt.engine import Array
from ltx2rt.errors import DeviceLostError, EngineError, UnsupportedError
from ltx2rt.install import install_hint

#: memory of GPUs that were lost: cuda.core would say of every block that it cannot be freed
_LEFT: list[object] = []

__all__ = ["CudaDevice", "Device", "Gpu", "driver_cuda", "local_gpu"]


class CudaDevice:
    """A GPU: its primary context and streams of our own.

    Args:
        purpose: what needs it, for errors.
        index: its number, among those that CUDA shows.

    Raises:
        UnsupportedError: no such GPU, no driver or no cuda-python.
        EngineError: CUDA fails.
    """

    def __init__(self, purpose: str, index: int = 0) -> None:
        self._driver = load_driver(purpose)
        find_device(self._driver, purpose, index)
        self.gpu = local_gpu(purpose, index)
        self.index = index
        self._core = _load_core(purpose)
        self._blocks: dict[int, Any] = {}
        self._warned = False
        self._losses: list[Loss] = []  # the first one, for all lanes
        self.activate()
        self._open_streams()

    def _open_streams(self) -> None:
        options = self._core.StreamOptions(nonblocking=True)
        device = self._core.Device(self.index)
        self.compute = _CudaStream(self, self._call(device.create_stream, options=options))
        self.upload = _CudaStream(self, self._call(device.create_stream, options=options))
        self.download = _CudaStream(self, self._call(device.create_stream, options=options))

    def lane(self) -> CudaDevice:
        """See `Device`."""
        other = copy.copy(self)
        other._open_streams()
        return other

    @property
    def is_lost(self) -> bool:
        """See `Device`."""
        return bool(self._losses)

    def raise_if_lost(self) -> None:
        """See `Device`."""
        result = self._driver.cuStreamQuery(int(self.upload.handle))[0]
        if self.is_lost or loss_in(result.name):
            raise self._failure(result.name)

    def activate(self) -> None:
        """Make the context that of the calling thread: frames decode on a thread of their own."""
        self._discard(self._core.Device(self.index).set_current)

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes, which every stream may use.

        Raises:
            EngineError: the GPU has no room for them; says how much it has.
        """
        device = self._core.Device(self.index)
        try:
            block = self._call(device.allocate, max(size, 1), stream=self.compute.core)
        except EngineError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            raise EngineError(self._out_of_memory(size)) from error
        self.compute.sync()
        address = int(block.handle)
        self._blocks[address] = block
        return address

    def free_bytes(self) -> int:
        """Memory that is free now."""
        return int(self._call(lambda: check(self._driver, self._driver.cuMemGetInfo()))[0])

    def free(self, address: int) -> None:
        """Give memory of `allocate` back, once nothing uses it; from any thread."""
        self.activate()
        self._release(self._blocks.pop(address))
        self.finish(self.compute)

    def pinned(self, size: int) -> Pinned:
        """Host memory that copies need not wait for; pageable, with one warning, where the system
        refuses it.
        """
        try:
            block = self._call(self._core.LegacyPinnedMemoryResource().allocate, max(size, 1))
        except DeviceLostError:
            raise
        except EngineError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the system refuses pinned memory ({error}): copies to and from the GPU wait "
                    "for each other, which is slower.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return _HostBytes(self, np.empty(size, np.uint8), None)
        return _HostBytes(self, np.from_dlpack(block).view(np.uint8)[:size], block)

    def copy_in(self, address: int, array: Array, stream: Stream) -> None:
        """See `Device`."""
        self._copy("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def copy_out(self, array: Array, address: int, stream: Stream) -> None:
        """See `Device`."""
        self._copy("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def copy_within(self, to: int, source: int, size: int, stream: Stream) -> None:
        """See `Device`."""
        self._copy("cuMemcpyDtoDAsync", to, source, size, stream)

    def copy_box(
        self, to: Box, source: Box, row_bytes: int, rows: int, slices: int, stream: Stream
    ) -> None:
        """See `Device`."""
        driver = self._driver
        copy = driver.CUDA_MEMCPY3D()
        copy.dstMemoryType = copy.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.dstDevice, copy.dstPitch = to.address, to.row_pitch
        copy.srcDevice, copy.srcPitch = source.address, source.row_pitch
        copy.dstHeight = to.slice_pitch // to.row_pitch
        copy.srcHeight = source.slice_pitch // source.row_pitch
        copy.WidthInBytes, copy.Height, copy.Depth = row_bytes, rows, slices
        handle = int(stream.handle)
        self._call(lambda: check(driver, driver.cuMemcpy3DAsync(copy, handle)))

    def clear(self, address: int, size: int, stream: Stream) -> None:
        """See `Device`."""
        handle, call = int(stream.handle), self._driver.cuMemsetD8Async
        self._call(lambda: check(self._driver, call(address, 0, size, handle)))

    def capture(self, enqueue: Callable[[], object]) -> Graph:
        """See `Device`.

        Raises:
            EngineError: something that cannot be captured was called.
        """
        builder = self._call(self.compute.core.create_graph_builder)
        self._call(builder.begin_building, "thread_local")
        try:
            enqueue()
        except BaseException:
            with suppress(EngineError):  # of a capture that what failed has broken
                self._call(builder.end_building)
            raise
        self._call(builder.end_building)
        return _CudaGraph(self, self._call(builder.complete), builder)

    def finish(self, *streams: Stream) -> None:
        """See `Device`."""
        if not self.is_lost:
            for stream in streams:
                stream.sync()

    def close(self) -> None:
        """Free the streams."""
        for stream in (self.compute, self.upload, self.download):
            self.finish(stream)
            self._discard(stream.core.close)

    def _copy(self, name: str, to: int, source: int, size: int, stream: Stream) -> None:
        call = getattr(self._driver, name)
        self._call(lambda: check(self._driver, call(to, source, size, int(stream.handle))))

    def _out_of_memory(self, size: int) -> str:
        free, total = self._driver.cuMemGetInfo()[1:]
        return (
            f"the GPU ({self.gpu.name}) is out of memory: {size / 2**30:.2f} GiB more are needed, "
            f"{free / 2**30:.2f} of {total / 2**30:.2f} GiB are free; ask for a smaller clip, end "
            "what else uses the GPU, or build in a smaller precision (`ltx2rt build --dry-run` "
            "says what each takes)."
        )

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call CUDA.

        Raises:
            EngineError: the call failed.
        """
        try:
            return function(*arguments, **options)
        except (RuntimeError, self._core.CUDAError) as error:
            raise self._failure(str(error).splitlines()[0]) from error

    def _failure(self, said: str) -> EngineError:
        """What a failed call becomes; once the GPU is lost, all fail of that."""
        if not self._losses and (loss := loss_in(said)) is not None:
            self._losses.append(loss)
        if self._losses:
            return lost(f"GPU {self.index} ({self.gpu.name})", self._losses[0])
        return EngineError(f"CUDA failed: {said}")

    def _release(self, block: Any) -> None:
        """Free memory of cuda.core, unless it went with the GPU."""
        if self.is_lost:
            _LEFT.append(block)
        else:
            self._call(block.close)

    def _discard(self, free: Callable[[], object]) -> None:
        """Call what frees something; where the GPU was lost before, it went with that."""
        was_lost = self.is_lost
        try:
            self._call(free)
        except DeviceLostError:
            if not was_lost:
                raise


@dataclass(frozen=True, slots=True)
class _CudaEvent:
    device: CudaDevice
    core: Any

    @property
    def is_done(self) -> bool:
        return bool(self.device._call(lambda: self.core.is_done))

    def sync(self) -> None:
        """See `Event`."""
        self.device._call(self.core.sync)


@dataclass(frozen=True, slots=True)
class _CudaMark(_CudaEvent):
    def since(self, earlier: Mark) -> float:
        """See `Mark`."""
        assert isinstance(earlier, _CudaMark)
        return float(self.device._call(lambda: self.core - earlier.core)) * 1e-3


@dataclass(frozen=True, slots=True)
class _CudaStream:
    device: CudaDevice
    core: Any

    @property
    def handle(self) -> int:
        return int(self.core.handle)

    def record(self) -> _CudaEvent:
        """See `Stream`."""
        return _CudaEvent(self.device, self.device._call(self.core.record))

    def mark(self) -> _CudaMark:
        """See `Stream`."""
        options = self.device._core.EventOptions(timing_enabled=True)
        return _CudaMark(self.device, self.device._call(self.core.record, options=options))

    def wait(self, event: Event) -> None:
        """See `Stream`."""
        assert isinstance(event, _CudaEvent)
        self.device._call(self.core.wait, event.core)

    def sync(self) -> None:
        """See `Stream`."""
        self.device._call(self.core.sync)


@dataclass(frozen=True, slots=True)
class _HostBytes:
    device: CudaDevice
    array: Array
    block: Any

    @property
    def is_pinned(self) -> bool:
        return self.block is not None

    def close(self) -> None:
        """Free it, once no copy uses it; the array must not be used again."""
        if self.block is not None:
            self.device._release(self.block)


@dataclass(frozen=True, slots=True)
class _CudaGraph:
    device: CudaDevice
    graph: Any
    builder: Any

    def launch(self) -> None:
        self.device._call(self.graph.launch, self.device.compute.core)

    def close(self) -> None:
        self.device._discard(self.graph.close)
        self.device._discard(self.builder.close)


def _load_core(purpose: str) -> Any:
    try:
        core = importlib.import_module("cuda.core")
        errors = importlib.import_module("cuda.core._utils.cuda_utils")
    except ImportError as error:
        raise UnsupportedError(
            f"{purpose} needs cuda-core, which cannot be imported here ({error}): "
            f"{install_hint('gpu')}."
        ) from error
    return _Core(core, errors.CUDAError)


@dataclass(frozen=True, slots=True)
class _Core:
    """cuda.core with the error that its calls raise, which it does not name in public."""

    module: Any
    CUDAError: type[Exception]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
