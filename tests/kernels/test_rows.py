"""AdaLN, gated residual and token quantisation: kernels and function bodies against the
reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltx2rt_kernels.adaln_modulate import spec as adaln
from ltx2rt_kernels.adaln_modulate.reference import adaln_modulate, adaln_modulate_quant
from ltx2rt_kernels.gated_residual import spec as gated
from ltx2rt_kernels.gated_residual.reference import gated_residual
from ltx2rt_kernels.rms_norm_quant import spec as quant
from ltx2rt_kernels.rms_norm_quant.reference import rms_norm_quant
from ltx2rt_kernels.spec import KernelSpec, Operator
from tests.kernels.graphs import one_node_model, rtx_kernels, run_onnxruntime
from tests.kernels.interpreter import TORCH_DTYPES, Interpreter
from tests.kernels.numerics import rel_rms
from tests.tolerances import FP8_CODE_MISMATCH, KERNEL_REL_RMS

WIDTH, DISTINCT = 512, 3
SHAPES = [(1, 1), (3, 37)]  # batch, tokens
OPERATORS = {o.name: o for o in (*adaln.OPERATORS, *gated.OPERATORS, quant.OPERATOR)}


def make_inputs(operator: Operator, dtype: str, batch: int, tokens: int) -> dict[str, Tensor]:
    """Every input of the operator; the first token is zero, one channel is an outlier."""
    generator = torch.Generator().manual_seed(tokens)
    per_token = "index" not in {t.name for t in operator.inputs}
    inputs = {}
    for tensor in operator.inputs:
        if tensor.name == "index":
            index = torch.randint(DISTINCT, (batch, tokens), generator=generator)
            inputs["index"] = index
            continue
        is_row = tensor.name in ("scale", "shift", "gate") and not per_token
        shape = (DISTINCT, WIDTH) if is_row else (batch, tokens, WIDTH)
        value = torch.randn(shape, generator=generator)
        if tensor.name == "x":
            value[..., 7] *= 40
            value[0, 0] = 0
        inputs[tensor.name] = value.to(TORCH_DTYPES[dtype])
    return inputs


def kernel_of(operator: Operator, dtype: str) -> KernelSpec:
    if operator is quant.OPERATOR:
        return quant.kernel(dtype, WIDTH)
    make: Any = gated.kernel if operator in gated.OPERATORS else adaln.kernel
    spec: KernelSpec = make(operator, dtype, WIDTH)
    return spec


def reference(operator: Operator, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    exact = {n: t if n == "index" else t.float() for n, t in inputs.items()}
    if operator in gated.OPERATORS:
        return (gated_residual(**exact),)
    if operator is quant.OPERATOR:
        return rms_norm_quant(**exact)
    if adaln.is_quantized(operator):
        return adaln_modulate_quant(**exact)
    return (adaln_modulate(**exact),)


def check(
    operator: Operator, got: dict[str, Tensor], inputs: dict[str, Tensor], dtype: str
) -> None:
    want = reference(operator, inputs)
    if len(want) == 1:
        assert got["out"].dtype == TORCH_DTYPES[dtype]
        assert rel_rms(got["out"], want[0]) <= KERNEL_REL_RMS[dtype].bound
        return
    codes, amax = want
    assert rel_rms(got["amax"], amax) <= KERNEL_REL_RMS["fp32"].bound
    steps = (ordinal(got["codes"]) - ordinal(codes)).abs()
    assert (steps > 0).float().mean() <= FP8_CODE_MISMATCH.bound
    assert int(steps.max()) <= 1  # where they differ, they are neighbours


def ordinal(codes: Tensor) -> Tensor:
    """E4M3 codes as integers in the order of their values; both zeros are 0."""
    bits = codes.view(torch.uint8).int()
    return torch.where(bits < 128, bits, 128 - bits)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_kernel_equals_reference(
    interpreter: Interpreter, name: str, dtype: str, shape: tuple[int, int]
) -> None:
    operator = OPERATORS[name]
    inputs = make_inputs(operator, dtype, *shape)
    check(operator, interpreter.run(kernel_of(operator, dtype), inputs), inputs, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_function_equals_reference(name: str, dtype: str) -> None:
    operator = OPERATORS[name]
    inputs = make_inputs(operator, dtype, 3, 37)
    shapes = {n: t.shape for n, t in inputs.items()}
    model = one_node_model(operator, {"T": dtype}, shapes)
    check(operator, run_onnxruntime(model, inputs), inputs, dtype)


@pytest.mark.parametrize("name", ["adaln_modulate", "adaln_modulate_quant", "gated_residual"])
def test_rtx_fuses_the_body(name: str, tmp_path: Path) -> None:
    """Why these operators are off by default on TensorRT-RTX: it makes one kernel of each too."""
    operator, width = OPERATORS[name], 4096
    shapes: dict[str, list[int | str]] = {t.name: ["B", "T", width] for t in operator.inputs}
    shapes |= {n: [DISTINCT, width] for n in ("scale", "shift", "gate")}
    shapes["index"] = ["B", "T"]
    names = rtx_kernels(one_node_model(operator, {"T": "bf16"}, shapes), tmp_path)
    assert len({k.split("_0x")[0] for k in names}) == 1, names
