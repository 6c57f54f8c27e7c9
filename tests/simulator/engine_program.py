"""Simulated engine files, and how one is run: its ONNX graph on ONNX Runtime, in float32.

16-bit floats exist at the boundary alone: tensors in device memory have the engine's dtypes, inside
everything is float32. 8-bit codes stay codes, which ONNX Runtime dequantises as the graph says.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from ltx2rt.engine import Array
from ltx2rt_export.bisect.float32_graph import float32_graph, unpack_int4

MAGIC = b"simulated engine 1\n"

#: dtype name -> numpy dtype of its bit pattern in device memory
CARRIERS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "bool": np.dtype(np.bool_),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "float8_e4m3fn": np.dtype(np.uint8),
    "int4": np.dtype(np.uint8),  # two a byte
}

#: ONNX element type of inputs that numpy has no dtype for
FLOAT8 = {"float8_e4m3fn": onnx.TensorProto.FLOAT8E4M3FN}


@dataclass(frozen=True, slots=True)
class Boundary:
    """One input or output; symbols of its shape are those of the graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def bytes_at(self, shape: Sequence[int]) -> int:
        """Its size in device memory."""
        elements = int(np.prod(shape, dtype=np.int64))
        return -(-elements // 2) if self.dtype == "int4" else elements * self.carrier.itemsize

    @property
    def carrier(self) -> np.dtype[Any]:
        return CARRIERS[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is in a simulated engine file.

    Attributes:
        backend, version, targets: what "built" it and for what.
        inputs: weights too, where they are bound; `outputs`.
        profiles: input -> (smallest, likely, largest shape), one mapping a profile.
        constants: the weights are inside.
        graph: the ONNX model as the builder got it.
    """

    backend: str
    version: str
    targets: tuple[str, ...]
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], ...]], ...]
    graph: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """The engine file."""
        header = {
            "backend": self.backend,
            "version": self.version,
            "targets": self.targets,
            "inputs": [(t.name, t.dtype, t.shape) for t in self.inputs],
            "outputs": [(t.name, t.dtype, t.shape) for t in self.outputs],
            "profiles": [{n: list(r) for n, r in p.items()} for p in self.profiles],
        }
        return MAGIC + json.dumps(header).encode() + b"\n" + self.graph

    @staticmethod
    def from_bytes(data: bytes) -> Program:
        """Read an engine file.

        Raises:
            ValueError: it is none.
        """
        if not data.startswith(MAGIC):
            raise ValueError("not a simulated engine")
        header, _, graph = data[len(MAGIC) :].partition(b"\n")
        facts = json.loads(header)
        return Program(
            backend=facts["backend"],
            version=facts["version"],
            targets=tuple(facts["targets"]),
            inputs=tuple(Boundary(n, d, tuple(s)) for n, d, s in facts["inputs"]),
            outputs=tuple(Boundary(n, d, tuple(s)) for n, d, s in facts["outputs"]),
            profiles=tuple(
                {n: tuple(tuple(s) for s in r) for n, r in p.items()} for p in facts["profiles"]
            ),
            graph=graph,
        )

    @functools.cached_property
    def digest(self) -> str:
        """Names the graph: programs of equal graphs share a session."""
        return hashlib.sha256(self.graph).hexdigest()

    def run(self, bits: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs as bit patterns, from inputs as bit patterns."""
        feeds = {t.name: _to_session(t, bits[t.name]) for t in self.inputs}
        results = self._session().run_with_ort_values([t.name for t in self.outputs], feeds)
        return {
            t.name: to_bits(value.numpy(), t.dtype)
            for t, value in zip(self.outputs, results, strict=True)
        }

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs for those of the inputs: from the symbols that they share, else
        inferred by ONNX, else from a run on zeros.
        """
        sizes = {
            symbol: size
            for t in self.inputs
            for symbol, size in zip(t.shape, shapes[t.name], strict=True)
            if isinstance(symbol, str)
        }
        if all(isinstance(d, int) or d in sizes for t in self.outputs for d in t.shape):
            return {
                t.name: tuple(d if isinstance(d, int) else sizes[d] for d in t.shape)
                for t in self.outputs
            }
        key = (self.digest, *((t.name, shapes[t.name]) for t in self.inputs))
        if key not in _MEASURED:
            _MEASURED[key] = self._inferred_shapes(shapes) or self._measured_shapes(shapes)
        return _MEASURED[key]

    def scratch_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Memory of the activations at these shapes of the inputs: simulated as what the inputs
        that are no weights take, twice, in steps of 256 bytes.
        """
        symbolic = (t for t in self.inputs if any(isinstance(d, str) for d in t.shape))
        size = sum(t.bytes_at(shapes[t.name]) for t in symbolic)
        return (2 * size + 511) // 256 * 256

    def _inferred_shapes(
        self, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]] | None:
        """None: ONNX does not know all of them."""
        model = onnx.load_model_from_string(self.graph)
        for value in model.graph.input:
            for dimension, size in zip(
                value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False
            ):
                dimension.dim_value = size
        for value in model.graph.output:
            for dimension in value.type.tensor_type.shape.dim:
                dimension.Clear()
        del model.graph.value_info[:]
        found = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        }
        return found if all(size > 0 for shape in found.values() for size in shape) else None

    def _measured_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        zeros = {}
        for t in self.inputs:
            flat = np.zeros(t.bytes_at(shapes[t.name]) // t.carrier.itemsize, t.carrier)
            zeros[t.name] = flat if t.dtype == "int4" else flat.reshape(shapes[t.name])
        return {name: array.shape for name, array in self.run(zeros).items()}

    def _session(self) -> ort.InferenceSession:
        if self.digest not in _SESSIONS:
            settings = ort.SessionOptions()
            settings.log_severity_level = 3
            settings.intra_op_num_threads = 1
            # later rewrites make FP8 graphs unusable, and cost more here than they save
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            model = float32_graph(onnx.load_model_from_string(self.graph))
            _SESSIONS[self.digest] = ort.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
        return _SESSIONS[self.digest]


#: sessions by graph, and shapes of outputs by graph and shapes of inputs: made once a process
_SESSIONS: dict[str, ort.InferenceSession] = {}
_MEASURED: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}


def from_bits(bits: Array, dtype: str) -> Array:
    """What ONNX Runtime takes for a bit pattern: float32 for 16-bit floats."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32) if dtype == "float16" else bits


def to_bits(values: Array, dtype: str) -> Array:
    """The inverse; rounds to nearest, ties to even."""
    if dtype == "bfloat16":
        wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (wide + (((wide >> 16) & 1) + 0x7FFF)) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    return np.ascontiguousarray(values, CARRIERS[dtype])


def _to_session(tensor: Boundary, bits: Array) -> Any:
    if tensor.dtype in FLOAT8:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, FLOAT8[tensor.dtype])
    values = unpack_int4(bits) if tensor.dtype == "int4" else from_bits(bits, tensor.dtype)
    shape = bits.shape if tensor.dtype != "int4" else tensor.shape
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values).reshape(shape))
