"""Run a quantised graph on onnx's reference evaluator: formats that ONNX Runtime lacks on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ltx2rt.engine import Array
from ltx2rt.weights.codecs import nvfp4
from ltx2rt.weights.safetensors import convert
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import weight_inputs

_TYPES = {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}


class MatMul(OpRun):
    """Sums in float32 and rounds once, as GEMMs do; numpy would round every partial sum."""

    op_domain = ""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return (np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype),)


class Softmax(OpRun):
    """In float32, rounded once, as fused attention does."""

    op_domain = ""

    def _run(self, x: Array, axis: int = -1) -> tuple[Array]:
        wide = x.astype(np.float32)
        powers = np.exp(wide - wide.max(axis=axis, keepdims=True))
        return ((powers / powers.sum(axis=axis, keepdims=True)).astype(x.dtype),)


class TRT_FP4DynamicQuantize(OpRun):  # noqa: N801 (the operator's name)
    """TensorRT's operator: NVFP4 codes and group scales of activations."""

    op_domain = "trt"

    def _run(self, x: Array, scale: Array, **_: Any) -> tuple[Array, Array]:
        rows = x.astype(np.float32).reshape(-1, x.shape[-1])
        tensor = nvfp4.encode(rows, float(scale[0]))
        codes = unpack(nvfp4.swap_nibbles(tensor.codes), x.shape)
        scales = tensor.block_scales.reshape(*x.shape[:-1], -1)
        return codes.view(ml_dtypes.float4_e2m1fn), scales.view(ml_dtypes.float8_e4m3fn)


class MatMulIntegerToFloat(OpRun):
    """ONNX Runtime's operator: an 8-bit GEMM in integers, with a scale a column."""

    op_domain = "com.microsoft"

    def _run(
        self, a: Array, b: Array, a_scale: Array, b_scale: Array, a_zero: Array, **_: Any
    ) -> tuple[Array]:
        total = (a.astype(np.float64) - a_zero) @ b.astype(np.float64)
        return (total.astype(np.float32) * (a_scale * b_scale),)


def unpack(codes: Array, shape: tuple[int, ...]) -> Array:
    """Bytes of two 4-bit codes, the first one low, to one code a byte."""
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(shape)


def run_reference(graph: ExportedGraph, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs as float32.

    Args:
        tensors: inputs and weights as an engine takes them.
    """
    weights = weight_inputs(graph)
    feeds = {s.name: _typed(tensors[s.name], s.dtype, ()) for s in graph.component.inputs}
    feeds |= {n: _typed(tensors[n], dtype, shape) for n, (dtype, shape) in weights.items()}
    ops = [MatMul, MatMulIntegerToFloat, Softmax, TRT_FP4DynamicQuantize]
    outputs = ReferenceEvaluator(graph.model, new_ops=ops).run(None, feeds)
    names = [s.name for s in graph.component.outputs]
    return {n: np.asarray(o, np.float32) for n, o in zip(names, outputs, strict=True)}


def as_engine_takes(array: Array, dtype: str) -> Array:
    """A float32 array in an engine's dtype; others pass."""
    return convert(array, "float32", dtype, "an input") if array.dtype == np.float32 else array


def _typed(array: Array, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype in _TYPES:
        return array.view(_TYPES[dtype])
    if dtype == "float4_e2m1":
        return unpack(array, shape).view(ml_dtypes.float4_e2m1fn)
    if dtype == "int4":
        codes = unpack(array, shape).astype(np.int8)
        return np.where(codes > 7, codes - 16, codes).astype(ml_dtypes.int4)
    return array
