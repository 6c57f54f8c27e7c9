"""ONNX Runtime behind the `Engine` protocol: the embedded default, on any CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from ltx2rt.device.lost import LOSSES, lost
from ltx2rt.engine import Array, EngineBase, EngineSpec, check_inputs
from ltx2rt.errors import EngineError
from ltx2rt.trace import ENGINES, span

#: ONNX element types by what sessions call them
ELEMENT_TYPES = {
    "tensor(float)": 1,
    "tensor(uint8)": 2,
    "tensor(int8)": 3,
    "tensor(int32)": 6,
    "tensor(int64)": 7,
    "tensor(bool)": 9,
    "tensor(float16)": 10,
    "tensor(bfloat16)": 16,
    "tensor(float8e4m3fn)": 17,
}
#: input types that numpy does not have; they travel as integers of their size
BYTE_TYPES = {n: ELEMENT_TYPES[n] for n in ("tensor(float8e4m3fn)", "tensor(bfloat16)")}


#: where the data of graphs would be looked for, which is nowhere
EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
NO_FOLDER = f"{os.devnull}{os.sep}nowhere"
#: how ONNX Runtime says that there is too little memory
_TOO_LITTLE = ("Failed to allocate memory", "bad_alloc", "std::length_error")
#: and that CUDA failed, with the number of its error
_CUDA_FAILURE = re.compile(r"CUDA failure (\d+):")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtOptions:
    """How sessions run: `threads=0` lets ONNX Runtime use every core.

    `spinning`: threads wait for their next work in a loop instead of sleeping.
    `arena`: memory of a run is kept for the next one, in pieces that grow by doubling; without it
    large tensors go back to the system when their last reader is done. `full_optimization`: false
    for FP8 graphs, which its later rewrites make unusable. `providers`: what runs nodes, with its
    options; the first that can.
    """

    threads: int = 0
    spinning: bool = False
    arena: bool = True
    full_optimization: bool = True
    providers: tuple[tuple[str, Mapping[str, str]], ...] = (("CPUExecutionProvider", {}),)


def new_session(
    graph: bytes,
    component: str,
    initializers: Mapping[str, Array],
    options: OrtOptions,
    *,
    copied: bool = False,
) -> Any:
    """A session over a serialized model.

    Args:
        initializers: by name; the arrays must outlive the session.
        copied: they need not: the session has a copy of each, laid out as its kernels want it,
            which the graph names as a file of the initializer's own name.

    Raises:
        EngineError: ONNX Runtime refuses the graph; the message names the component.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # what it has to say is in the error
    # weights are injected: a graph that names a file for them names one that is not its own
    settings.add_session_config_entry(EXTERNAL_DATA_FOLDER, NO_FOLDER)
    settings.intra_op_num_threads = options.threads
    spinning = "1" if options.spinning else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    # planning which outputs share memory is quadratic in the number of nodes: most of the
    # time that a vocoder takes to load, for the same peak memory
    settings.enable_mem_reuse = False
    if not options.full_optimization:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # without this, sums of 8-bit products saturate on CPUs without VNNI; weights inside only
    settings.add_session_config_entry("session.x64quantprecision", "1")
    # linears of 4-bit constants: activations stay in float32, not in 8 bits
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # one session a layer: what each has used once must not stay its own
    settings.enable_cpu_mem_arena = options.arena and not copied
    if copied:
        contents = [
            np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in initializers.values()
        ]
        settings.add_external_initializers_from_files_in_memory(
            list(initializers), contents, [data.nbytes for data in contents]
        )
    elif initializers:
        values = [_ort_value(a) for a in initializers.values()]
        settings.add_external_initializers(list(initializers), values)
    try:
        return ort.InferenceSession(
            graph, settings, providers=[(name, dict(given)) for name, given in options.providers]
        )
    except Exception as error:  # its exceptions share no narrower base
        raise failure(f"cannot load {component}", error) from error


def _ort_value(array: Array) -> Any:
    """An array for ONNX Runtime; numpy's uint16 stands for bfloat16 (`NUMPY_DTYPES`)."""
    if array.dtype == np.uint16:
        bfloat16 = ELEMENT_TYPES["tensor(bfloat16)"]
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, bfloat16)
    return ort.OrtValue.ortvalue_from_numpy(array)


#: (graph, component, initializers, options) -> a session
OpenSession = Callable[[bytes, str, Mapping[str, Array], OrtOptions], Any]


class OrtEngine(EngineBase):
    """One session.

    Args:
        graph: the serialized ONNX model.
        spec: its boundary; inputs that `spec` does not list are weights bound at every call.
        initializers: weights injected on loading, by initializer name. The arrays must outlive the
            engine.
        open_session: on a GPU that of `onnxruntime_cuda`; arrays are still those of the host.
        copied: see `new_session`; initializers then need not outlive anything.

    Raises:
        EngineError: ONNX Runtime refuses the graph; the message names the component.
        MemoryError: there is too little.
    """

    def __init__(
        self,
        graph: bytes,
        spec: EngineSpec,
        initializers: Mapping[str, Array],
        options: OrtOptions | None = None,
        open_session: OpenSession = new_session,
        *,
        copied: bool = False,
    ) -> None:
        options, self._initializers = options or OrtOptions(), dict[str, Array]()
        if copied:
            self._session = new_session(graph, spec.component, initializers, options, copied=True)
        else:
            self._initializers = {n: np.ascontiguousarray(a) for n, a in initializers.items()}
            self._session = open_session(graph, spec.component, self._initializers, options)
        self._spec = spec
        self._output_names = [o.name for o in spec.outputs]
        self._byte_inputs = {
            i.name: BYTE_TYPES[i.type] for i in self._session.get_inputs() if i.type in BYTE_TYPES
        }

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on CPU arrays; see `Engine`."""
        check_inputs(self._spec, tensors)
        try:
            with span(ENGINES, self._spec.component):
                outputs = self._run(tensors)
        except Exception as error:  # its exceptions share no narrower base
            raise failure(f"failed in {self._spec.component}", error) from error
        return dict(zip(self._output_names, outputs, strict=True))

    def _run(self, tensors: Mapping[str, Array]) -> list[Array]:
        if not self._byte_inputs:
            outputs: list[Array] = self._session.run(self._output_names, dict(tensors))
            return outputs
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, self._byte_inputs[name])
            if name in self._byte_inputs
            else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            for name, array in tensors.items()
        }
        results = self._session.run_with_ort_values(self._output_names, values)
        return [value.numpy() for value in results]

    def close(self) -> None:
        """Free the session and its weights."""
        self._session = None
        self._initializers = {}


def failure(what: str, error: Exception) -> Exception:
    """What a caller gets for any of the library's exceptions."""
    said = str(error)
    if any(words in said for words in _TOO_LITTLE):
        return MemoryError(f"(ONNX Runtime {what}.)")
    if "xternal data" in said:
        said = "the graph names a file for its data, which no graph of ours does; do not use it"
    if (found := _CUDA_FAILURE.search(said)) and (loss := LOSSES.get(int(found[1]))):
        return lost(f"the GPU that {what.split()[-1]} ran on", loss)
    return EngineError(f"ONNX Runtime {ort.__version__} {what}: {said}")
