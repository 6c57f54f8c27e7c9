"""Graphs of one custom node, and what backends make of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from ltx2rt_kernels.function import OPSET, function_of, make_node
from ltx2rt_kernels.spec import DOMAIN, Operator

ONNX_DTYPES = {
    "fp32": onnx.TensorProto.FLOAT,
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
    "fp8e4nv": onnx.TensorProto.FLOAT8E4M3FN,
    "i64": onnx.TensorProto.INT64,
}

#: parse and build one graph; print the names of the kernels in the engine
BUILD_SCRIPT = """
import re, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
network = builder.create_network(flag)
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("\\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(getattr(trt.ComputeCapability, sys.argv[2]), 0)
profile = builder.create_optimization_profile()
for i in range(network.num_inputs):
    tensor = network.get_input(i)
    sizes = [tuple(n if d < 0 else d for d in tensor.shape) for n in (2, 64, 512)]
    if any(d < 0 for d in tensor.shape):
        profile.set_shape(tensor.name, *sizes)
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
if engine is None:
    sys.exit("build failed")
text = bytes(engine)
names = re.findall(rb"__global__ [^(]*?(?:__launch_bounds__\\([^)]*\\))?\\s*(\\w+)\\s*\\(", text)
print("\\n".join(sorted(n.decode() for n in names)))
"""


def one_node_model(
    operator: Operator,
    types: Mapping[str, str],
    shapes: Mapping[str, Sequence[int | str]],
    **attributes: int | float,
) -> onnx.ModelProto:
    """A model whose only node is the operator's, with its function.

    Args:
        operator: the operator.
        types: dtype of each type variable.
        shapes: of every input; names are dynamic dimensions.
        attributes: of the node.
    """

    def dtype(name: str) -> int:
        return ONNX_DTYPES[types.get(name, name)]

    inputs = [
        helper.make_tensor_value_info(t.name, dtype(t.dtype), list(shapes[t.name]))
        for t in operator.inputs
    ]
    outputs = [
        helper.make_tensor_value_info(t.name, dtype(t.dtype), [None] * len(t.shape))
        for t in operator.outputs
    ]
    node = make_node(operator, [v.name for v in inputs], [v.name for v in outputs], **attributes)
    model = helper.make_model(
        helper.make_graph([node], operator.name, inputs, outputs),
        functions=[function_of(operator)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
    )
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def run_onnxruntime(model: onnx.ModelProto, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # the default level rewrites fp8 Q/DQ into an operator that does not load
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    if torch.float8_e4m3fn in {t.dtype for t in inputs.values()}:  # numpy has no such type
        values = session.run_with_ort_values(names, {n: _ort_value(t) for n, t in inputs.items()})
        outputs = [v.numpy() for v in values]
    else:
        outputs = session.run(names, {n: t.numpy() for n, t in inputs.items()})
    return {n: torch.from_numpy(o) for n, o in zip(names, outputs, strict=True)}


def _ort_value(tensor: Tensor) -> onnxruntime.OrtValue:
    if tensor.dtype != torch.float8_e4m3fn:
        return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
        tensor.view(torch.uint8).numpy(), onnx.TensorProto.FLOAT8E4M3FN
    )


def rtx_kernels(model: onnx.ModelProto, directory: Path, target: str = "SM89") -> list[str]:
    """Names of the generated kernels in a TensorRT-RTX engine, built in a process of its own."""
    path = directory / "model.onnx"
    onnx.save(model, path)
    command = [sys.executable, "-c", BUILD_SCRIPT, str(path), target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
