"""8-bit attention: quantisers, kernels and function bodies against the float32 reference."""

from __future__ import annotations

import pytest
import torch

from ltx2rt_kernels.flash_attention.reference import flash_attention
from ltx2rt_kernels.flash_attention.spec import scale_of
from ltx2rt_kernels.fp8_attention import spec
from ltx2rt_kernels.fp8_attention.reference import (
    dequantize_tokens,
    fp8_attention,
    groups,
    quantize_tokens,
    quantize_values,
)
from ltx2rt_kernels.spec import Operator
from tests.kernels.attention_inputs import BIASES, make_bias, make_qkv, quantized
from tests.kernels.graphs import one_node_model, run_onnxruntime
from tests.kernels.interpreter import Interpreter
from tests.kernels.numerics import rel_rms
from tests.tolerances import ATTENTION_REL_RMS, FP8_ATTENTION_REL_RMS

LENGTHS = [(1, 1), (37, 70), (129, 65), (200, 250)]


@pytest.mark.parametrize("tokens", [1, 64, 65, 150])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("smooth", [True, False])
def test_token_quantiser_equals_reference(
    interpreter: Interpreter, tokens: int, head_dim: int, smooth: bool
) -> None:
    x = make_qkv((tokens, tokens), head_dim, torch.bfloat16)["k"]
    x[0, 0] = 0  # a head of zeros
    inputs = {"x": x}
    if smooth:
        inputs["mean"] = x.float().mean(dim=2, keepdim=True).to(torch.bfloat16)
    operator = spec.QUANTIZE_KEYS if smooth else spec.QUANTIZE_QUERIES
    got = interpreter.run(spec.quantizer(operator, "bf16", head_dim), inputs)
    want, scale = quantize_tokens(**inputs)
    torch.testing.assert_close(got["scale"], scale, rtol=1e-6, atol=0)
    assert torch.equal(got["quantized"].view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("tokens", [1, 64, 65, 150])
def test_value_quantiser_equals_reference(interpreter: Interpreter, tokens: int) -> None:
    v = make_qkv((1, tokens), 64, torch.bfloat16)["v"]
    inputs = {"v": v, "amax": v.abs().amax(dim=1, keepdim=True)}
    kernel = spec.quantizer(spec.QUANTIZE_VALUES, "bf16", 0)
    got = interpreter.run(kernel, inputs)["quantized"]
    assert torch.equal(got.view(torch.uint8), quantize_values(**inputs).view(torch.uint8))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"q{n[0]}-k{n[1]}")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("values", ["v16", "v8"])
def test_kernel_equals_reference(
    interpreter: Interpreter, values: str, head_dim: int, lengths: tuple[int, int], bias: str
) -> None:
    inputs = quantized(make_qkv(lengths, head_dim, torch.bfloat16), values=values == "v8")
    masked, plain = {
        "v8": (spec.MASKED_FULL, spec.FULL),
        "v16": (spec.MASKED_QK, spec.QK),
    }[values]
    if bias != "none":
        inputs["bias"] = make_bias(bias, lengths, torch.bfloat16)
    kernel = spec.kernel(plain if bias == "none" else masked, "bf16", head_dim)
    got = interpreter.run(kernel, inputs)["out"]
    tiles = kernel.configs["89"].tiles
    block = tiles["FULL_BLOCK_N"] if bias == "full" and lengths[0] > 1 else tiles["BLOCK_N"]
    want = fp8_attention(**inputs, block=block)
    assert got.shape == want.shape
    assert rel_rms(got, want) <= ATTENTION_REL_RMS["bf16"].bound


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("values", ["v16", "v8"])
def test_function_body_equals_reference(values: str, bias: str) -> None:
    """Without rounding of the weights, which plain operators do not see."""
    lengths = (37, 70)
    inputs = quantized(make_qkv(lengths, 64, torch.float32), values=values == "v8")
    plain, masked = {
        "v16": (spec.QK, spec.MASKED_QK),
        "v8": (spec.FULL, spec.MASKED_FULL),
    }[values]
    if bias != "none":
        inputs["bias"] = make_bias(bias, lengths, torch.float32)
        inputs["bias"][0, :, 0] = 0  # plain operators make NaN of a row of -inf
    operator = plain if bias == "none" else masked
    got = run_body(operator, inputs, scale=scale_of(64))["out"]
    v = inputs["v"]
    if values == "v8":
        v = v.float()[:, :, : lengths[1]].transpose(1, 2) * inputs["v_amax"] / 448
    want = flash_attention(
        dequantize_tokens(inputs["q"], inputs["q_scale"]),
        dequantize_tokens(inputs["k"], inputs["k_scale"]),
        v,
        inputs.get("bias"),
    )
    assert rel_rms(got, want) <= ATTENTION_REL_RMS["fp32"].bound


@pytest.mark.parametrize("tokens", [1, 64, 65])
def test_quantiser_bodies_equal_reference(tokens: int) -> None:
    inputs = make_qkv((tokens, tokens), 64, torch.float32)
    k, v = inputs["k"], inputs["v"]
    mean, amax = k.mean(dim=2, keepdim=True), v.abs().amax(dim=1, keepdim=True)
    for operator, given in (
        (spec.QUANTIZE_QUERIES, {"x": k}),
        (spec.QUANTIZE_KEYS, {"x": k, "mean": mean}),
    ):
        got = run_body(operator, given)
        want, scale = quantize_tokens(**given)
        torch.testing.assert_close(got["scale"], scale, rtol=1e-6, atol=0)
        assert torch.equal(got["quantized"].view(torch.uint8), want.view(torch.uint8))
    got8 = run_body(spec.QUANTIZE_VALUES, {"v": v, "amax": amax})["quantized"]
    assert torch.equal(got8.view(torch.uint8), quantize_values(v, amax).view(torch.uint8))


def run_body(
    operator: Operator, inputs: dict[str, torch.Tensor], **attributes: float
) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(t.shape) for name, t in inputs.items()}
    model = one_node_model(operator, {"T": "fp32"}, shapes, **attributes)
    return run_onnxruntime(model, inputs)


@pytest.mark.parametrize("values", ["v16", "v8"])
def test_error_of_eight_bits(values: str) -> None:
    inputs = make_qkv((256, 512), 128, torch.bfloat16)
    exact = flash_attention(**inputs)
    got = fp8_attention(**quantized(inputs, values=values == "v8"))
    assert rel_rms(got, exact) <= FP8_ATTENTION_REL_RMS[values].bound


def test_smoothing_changes_nothing_but_the_error() -> None:
    """Any constant may be subtracted from the keys; that of their mean shrinks the error."""
    inputs = make_qkv((64, 256), 64, torch.float32)
    exact = flash_attention(**inputs)
    shifted = flash_attention(inputs["q"], inputs["k"] - 3.25, inputs["v"])
    assert rel_rms(shifted, exact) < 1e-5
    q, q_scale = quantize_tokens(inputs["q"])
    errors = []
    for mean in (None, inputs["k"].mean(dim=2, keepdim=True)):
        k, k_scale = quantize_tokens(inputs["k"], mean)
        errors.append(rel_rms(fp8_attention(q, k, inputs["v"], q_scale, k_scale), exact))
    assert errors[1] < 0.8 * errors[0]


def test_quantised_tokens_are_near() -> None:
    x = make_qkv((150, 150), 64, torch.float32)["q"]
    x8, scale = quantize_tokens(x)
    assert scale.shape == (2, 2, groups(150)) == (2, 2, -(-150 // spec.GROUP))
    assert float(x8.float().abs().max()) == 448.0
    assert rel_rms(dequantize_tokens(x8, scale), x) < 0.04  # half an ulp is 2^-4 relative, uniform
