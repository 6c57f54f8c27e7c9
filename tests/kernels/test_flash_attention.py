"""16-bit attention: kernel and function body against the float32 reference."""

from __future__ import annotations

import pytest
import torch

from ltx2rt_kernels.flash_attention.reference import flash_attention
from ltx2rt_kernels.flash_attention.spec import MASKED, PLAIN, kernel, scale_of
from tests.kernels.attention_inputs import BIASES, make_bias, make_qkv
from tests.kernels.graphs import one_node_model, run_onnxruntime
from tests.kernels.interpreter import TORCH_DTYPES, Interpreter
from tests.kernels.numerics import rel_rms
from tests.tolerances import ATTENTION_REL_RMS

#: one token; less than a block; a block and one; two blocks and a tail on both sides
LENGTHS = [(1, 1), (37, 70), (129, 65), (200, 250)]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"q{n[0]}-k{n[1]}")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_kernel_equals_reference(
    interpreter: Interpreter, dtype: str, head_dim: int, lengths: tuple[int, int], bias: str
) -> None:
    inputs = make_qkv(lengths, head_dim, TORCH_DTYPES[dtype])
    operator = PLAIN if bias == "none" else MASKED
    if bias != "none":
        inputs["bias"] = make_bias(bias, lengths, TORCH_DTYPES[dtype])
    got = interpreter.run(kernel(operator, dtype, head_dim), inputs)["out"]
    want = flash_attention(**inputs)
    assert got.shape == want.shape
    assert rel_rms(got, want) <= ATTENTION_REL_RMS[dtype].bound


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("lengths", LENGTHS[1:], ids=lambda n: f"q{n[0]}-k{n[1]}")
@pytest.mark.parametrize("arch", ["90a", "100a"])
def test_other_tiles_give_the_same(
    interpreter: Interpreter, arch: str, lengths: tuple[int, int], bias: str
) -> None:
    """Of the architectures whose steps differ from the first one's."""
    inputs = make_qkv(lengths, 128, torch.float16)
    operator = PLAIN if bias == "none" else MASKED
    if bias != "none":
        inputs["bias"] = make_bias(bias, lengths, torch.float16)
    got = interpreter.run(kernel(operator, "fp16", 128), inputs, arch)["out"]
    assert rel_rms(got, flash_attention(**inputs)) <= ATTENTION_REL_RMS["fp16"].bound


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_function_body_equals_reference(dtype: str, bias: str) -> None:
    lengths = (37, 70)
    inputs = make_qkv(lengths, 64, TORCH_DTYPES[dtype])
    operator = PLAIN if bias == "none" else MASKED
    if bias != "none":
        inputs["bias"] = make_bias(bias, lengths, TORCH_DTYPES[dtype])
        inputs["bias"][0, :, 0] = 0  # plain operators make NaN of a row of -inf
    shapes = {name: tuple(t.shape) for name, t in inputs.items()}
    model = one_node_model(operator, {"T": dtype}, shapes, scale=scale_of(64))
    got = run_onnxruntime(model, inputs)["out"]
    assert got.dtype == TORCH_DTYPES[dtype]
    assert rel_rms(got, flash_attention(**inputs)) <= ATTENTION_REL_RMS[dtype].bound


def test_reference_equals_torch() -> None:
    inputs = make_qkv((19, 23), 64, torch.float32)
    bias = make_bias("full", (19, 23), torch.float32)
    bias[0, :, 0] = 0  # torch makes NaN of a row of -inf
    heads = inputs["v"].unflatten(-1, (2, 64)).transpose(1, 2)
    scores = (inputs["q"], inputs["k"], heads)
    want = torch.nn.functional.scaled_dot_product_attention(*scores, attn_mask=bias)
    got = flash_attention(**inputs, bias=bias)
    assert rel_rms(got, want.transpose(1, 2).flatten(-2)) < 1e-6


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.bfloat16).min])
def test_a_row_that_masks_every_key_attends_to_all_alike(lowest: float) -> None:
    inputs = make_qkv((2, 9), 64, torch.float32, batch=1)
    got = flash_attention(**inputs, bias=torch.full((1, 1, 1, 9), lowest))
    assert rel_rms(got, inputs["v"].mean(dim=1, keepdim=True).expand(-1, 2, -1)) < 1e-6
