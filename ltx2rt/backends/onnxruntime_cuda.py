"""ONNX Runtime on an NVIDIA GPU: engines of a stack, bound by address on our memory and stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from ltx2rt.backends.binding import Place
from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.onnxruntime import ELEMENT_TYPES, OrtOptions, failure, new_session
from ltx2rt.bundle.buckets import symbol_sizes
from ltx2rt.device.device import Stream
from ltx2rt.engine import NUMPY_DTYPES, Array, EngineBase, EngineSpec, Shaped, check_inputs
from ltx2rt.errors import EngineError, InternalError, UnsupportedError

PROVIDER = "CUDAExecutionProvider"
#: what installs it: both packages hold the same module, so one must go before the other comes
INSTALL = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
#: ONNX element type of every dtype of an engine's boundary
_BOUNDARY_TYPES = {
    dtype: ELEMENT_TYPES[f"tensor({'float' if dtype == 'float32' else dtype})"]
    for dtype in NUMPY_DTYPES
}


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`."""

    def io_binding(self) -> Any: ...

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None: ...

    def get_inputs(self) -> Any: ...

    def get_providers(self) -> Any: ...


def check_provider() -> None:
    """Check that this ONNX Runtime has the CUDA provider.

    Raises:
        UnsupportedError: it has not; says what to install.
    """
    if PROVIDER not in ort.get_available_providers():
        raise UnsupportedError(
            f"ONNX Runtime {ort.__version__} here runs on CPUs only; to run this bundle on a GPU "
            f"install its build for CUDA: {INSTALL}."
        )


def on_gpu(options: OrtOptions, index: int, stream: Stream | None = None) -> OrtOptions:
    """The same options, for a session on a GPU.

    Args:
        index: number of the GPU.
        stream: that of ours which it runs on; None: one of its own.
    """
    chosen = {
        "device_id": str(index),
        "use_tf32": "0",  # float32 is float32
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if stream is not None:
        chosen |= {"user_compute_stream": str(int(stream.handle))}
    return replace(options, providers=((PROVIDER, chosen), ("CPUExecutionProvider", {})))


def open_session(
    graph: bytes, component: str, initializers: Mapping[str, Array], options: OrtOptions
) -> Session:
    """A session on the GPU that `options` name.

    Raises:
        UnsupportedError: the provider is there and cannot load; ONNX Runtime would go on without
            the GPU.
        EngineError: it refuses the graph.
    """
    check_provider()
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:  # CUDA and cuDNN of the packages nvidia-*
        preload()
    session: Session = new_session(graph, component, initializers, options)
    if PROVIDER not in session.get_providers():
        raise UnsupportedError(
            f"ONNX Runtime {ort.__version__} has the CUDA provider, which cannot load here: its "
            "libraries (CUDA, cuDNN 9) are missing or the driver is too old; install them with "
            "pip install 'onnxruntime-gpu[cuda,cudnn]', or build a bundle for the CPU."
        )
    return session


class OrtBinding:
    """Inputs and outputs of one session by address; see `binding.Binding`, whose twin it is.

    Args:
        session: the engine's.
        spec: the component's boundary; sizes of its outputs follow from those of its inputs.
        index: number of the GPU.
    """

    def __init__(self, session: Session, spec: EngineSpec, index: int) -> None:
        self._session = session
        self._spec = spec
        self._index = index
        self._io = session.io_binding()
        self._bound: dict[str, object] = {}
        self._taken = {i.name: i for i in session.get_inputs()}

    def bind(self, feeds: Mapping[str, DeviceTensor], place: Place) -> dict[str, DeviceTensor]:
        """Set inputs and outputs; see `Binding.bind`."""
        check_inputs(self._spec, feeds)
        for spec in self._spec.inputs:
            if spec.name in self._taken:
                self._bind_input(spec.name, _BOUNDARY_TYPES[spec.dtype], feeds[spec.name])
        sizes = symbol_sizes(
            {t.name: t.shape for t in self._spec.inputs},
            {t.name: feeds[t.name].shape for t in self._spec.inputs},
        )
        outputs = {}
        for spec in self._spec.outputs:
            shape = tuple(d if isinstance(d, int) else sizes[d] for d in spec.shape)
            dtype = NUMPY_DTYPES[spec.dtype]
            address = place(spec.name, math.prod(shape) * dtype.itemsize)
            found = DeviceTensor(shape, dtype, address)
            key = (shape, found.address)
            if self._bound.get(spec.name) != key:
                self._io.bind_output(
                    spec.name, "cuda", self._index, _BOUNDARY_TYPES[spec.dtype], list(shape),
                    found.address,
                )  # fmt: skip
                self._bound[spec.name] = key
            outputs[spec.name] = found
        return outputs

    def bind_weights(self, weights: Mapping[str, DeviceTensor]) -> None:
        """Set the inputs that the boundary does not list.

        Raises:
            InternalError: one is missing.
        """
        named = {spec.name for spec in self._spec.inputs}
        for name, taken in self._taken.items():
            if name not in named:
                if name not in weights:
                    raise InternalError(f"{self._spec.component} got no weight {name}")
                self._bind_input(name, ELEMENT_TYPES[taken.type], weights[name])

    def enqueue(self) -> None:
        """Run on the session's stream, without waiting for it."""
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._session.run_with_iobinding(self._io, options)
        except Exception as error:  # its exceptions share no narrower base
            raise failure(f"failed in {self._spec.component}", error) from error

    def can_be_captured(self, stream: Stream) -> bool:
        """Never: ONNX Runtime takes and frees memory while it runs."""
        del stream
        return False

    def _bind_input(self, name: str, element_type: int, tensor: DeviceTensor) -> None:
        key = (tensor.shape, tensor.address)
        if self._bound.get(name) != key:
            self._io.bind_input(
                name, "cuda", self._index, element_type, list(tensor.shape), tensor.address
            )
            self._bound[name] = key


class OrtDeviceEngine(EngineBase):
    """One session of a stack on a GPU; a `device_stack.DeviceEngine`.

    Args:
        session: see `open_session`, on the compute stream of `memory`'s device.
        spec: the component's boundary; other inputs are weights.
        inside: weights that the session took when it was opened, kept as long as it.
        memory: shared with the other engines.
        index: number of the GPU.
    """

    def __init__(
        self,
        session: Session,
        spec: EngineSpec,
        inside: Mapping[str, Array],
        memory: DeviceMemory,
        index: int,
    ) -> None:
        self._session: Session | None = session
        self._inside = inside
        self._spec = spec
        self._memory = memory.opened()
        self._index = index

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on host arrays, weights included; see `Engine`."""
        with self._memory.using():
            placed = {n: self._memory.upload(f"input {n}", a) for n, a in tensors.items()}
            binding = self.new_binding()
            found = binding.bind(placed, lambda n, size: self._memory.buffer(f"output {n}", size))
            self.bind_weights(placed, binding)
            self.run(binding)
            outputs = {name: np.empty(t.shape, t.dtype) for name, t in found.items()}
            wanted = [(outputs[n], t.address) for n, t in found.items()]
            self._memory.staging.receive(wanted, self._memory.device.compute)
        return outputs

    def new_binding(self) -> OrtBinding:
        """See `DeviceEngine`."""
        if self._session is None:
            raise InternalError("an engine that is closed")
        return OrtBinding(self._session, self._spec, self._index)

    def bind_weights(self, weights: Mapping[str, Shaped], binding: OrtBinding) -> None:
        """See `DeviceEngine`."""
        binding.bind_weights({n: t for n, t in weights.items() if isinstance(t, DeviceTensor)})

    def run(self, binding: OrtBinding) -> None:
        """See `DeviceEngine`."""
        try:
            binding.enqueue()
        except EngineError:
            self._memory.device.raise_if_lost()
            raise

    def close(self) -> None:
        """Free the session, once what runs is done; closing again does nothing."""
        if self._session is not None:
            self._memory.device.activate()
            self._memory.finish()
            self._session, self._inside = None, {}
            self._memory.close()
