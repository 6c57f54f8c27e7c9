"""Attention kernels through our launch (more than 48 KiB of shared memory, two kinds of bias),
against their references; and against torch's attention where torch has CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltx2rt_kernels import build, launch
from ltx2rt_kernels.flash_attention import spec as flash
from ltx2rt_kernels.flash_attention.reference import flash_attention
from ltx2rt_kernels.fp8_attention import spec as fp8
from ltx2rt_kernels.fp8_attention.reference import (
    fp8_attention,
    quantize_tokens,
    quantize_values,
)
from ltx2rt_kernels.spec import KernelSpec
from tests.gpu.device import Device, capability
from tests.kernels.attention_inputs import BIASES, make_bias, make_qkv, quantized
from tests.kernels.interpreter import TORCH_DTYPES
from tests.kernels.numerics import rel_rms
from tests.tolerances import ATTENTION_REL_RMS, FP8_CODE_MISMATCH, FP8_GPU_REL_RMS

CAPABILITY = capability()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CAPABILITY is None, reason="needs an NVIDIA GPU and cuda-bindings"),
]

#: one token; tails on both sides; several blocks; more keys than queries
LENGTHS = [(1, 1), (129, 65), (1000, 1111), (77, 4097)]


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device() as opened:
        yield opened


def architecture(spec: KernelSpec) -> str:
    assert CAPABILITY is not None
    names = launch.ARTIFACTS_FOR.get(CAPABILITY, ())
    arch = next((a for a in names if a in spec.configs), None)
    if arch is None:
        pytest.skip(f"{spec.name} has no kernel for compute capability {CAPABILITY}")
    return arch


def run(
    device: Device,
    spec: KernelSpec,
    folder: Path,
    inputs: dict[str, Tensor],
    **shapes: tuple[int, ...],
) -> dict[str, Tensor]:
    """Outputs of a kernel; `shapes` of its outputs."""
    arch = architecture(spec)
    list(build.write_artifacts(folder, [spec], [arch]))
    outputs = {t.name: (shapes[t.name], TORCH_DTYPES[spec.dtype(t)]) for t in spec.operator.outputs}
    with launch.Kernel(folder / f"{spec.artifact_name(arch)}.json") as kernel:
        return device.run(kernel, inputs, outputs)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"q{n[0]}-k{n[1]}")
@pytest.mark.parametrize("head_dim", flash.HEAD_DIMS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_flash_attention(
    device: Device, dtype: str, head_dim: int, lengths: tuple[int, int], bias: str, tmp_path: Path
) -> None:
    inputs = make_qkv(lengths, head_dim, TORCH_DTYPES[dtype])
    operator = flash.PLAIN if bias == "none" else flash.MASKED
    if bias != "none":
        inputs["bias"] = make_bias(bias, lengths, TORCH_DTYPES[dtype])
    spec = flash.kernel(operator, dtype, head_dim)
    got = run(device, spec, tmp_path, inputs, out=(2, lengths[0], 2 * head_dim))["out"]
    assert rel_rms(got, flash_attention(**inputs)) <= ATTENTION_REL_RMS[dtype].bound


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"q{n[0]}-k{n[1]}")
@pytest.mark.parametrize("head_dim", flash.HEAD_DIMS)
@pytest.mark.parametrize("values", ["v16", "v8"])
def test_fp8_attention(
    device: Device, values: str, head_dim: int, lengths: tuple[int, int], bias: str, tmp_path: Path
) -> None:
    inputs = quantized(make_qkv(lengths, head_dim, torch.bfloat16), values=values == "v8")
    plain, masked = {"v8": (fp8.FULL, fp8.MASKED_FULL), "v16": (fp8.QK, fp8.MASKED_QK)}[values]
    if bias != "none":
        inputs["bias"] = make_bias(bias, lengths, torch.bfloat16)
    spec = fp8.kernel(plain if bias == "none" else masked, "bf16", head_dim)
    got = run(device, spec, tmp_path, inputs, out=(2, lengths[0], 2 * head_dim))["out"]
    tiles = spec.configs[architecture(spec)].tiles
    block = tiles["FULL_BLOCK_N"] if bias == "full" and lengths[0] > 1 else tiles["BLOCK_N"]
    want = fp8_attention(**inputs, block=block)
    bound = FP8_GPU_REL_RMS if values == "v8" else ATTENTION_REL_RMS["bf16"]
    assert rel_rms(got, want) <= bound.bound


@pytest.mark.parametrize("tokens", [1, 65, 1000])
def test_quantisers(device: Device, tokens: int, tmp_path: Path) -> None:
    inputs = make_qkv((tokens, tokens), 128, torch.bfloat16)
    k, v = inputs["k"], inputs["v"]
    mean = k.float().mean(dim=2, keepdim=True).to(torch.bfloat16)
    amax = v.abs().amax(dim=1, keepdim=True)
    groups = -(-tokens // 64)
    got = run(
        device,
        fp8.quantizer(fp8.QUANTIZE_KEYS, "bf16", 128),
        tmp_path,
        {"x": k, "mean": mean},
        quantized=tuple(k.shape),
        scale=(2, 2, groups),
    )
    want, scale = quantize_tokens(k, mean)
    torch.testing.assert_close(got["scale"], scale, rtol=1e-6, atol=0)
    differing = got["quantized"].view(torch.uint8) != want.view(torch.uint8)
    assert differing.float().mean() <= FP8_CODE_MISMATCH.bound
    got8 = run(
        device,
        fp8.quantizer(fp8.QUANTIZE_VALUES, "bf16", 128),
        tmp_path,
        {"v": v, "amax": amax},
        quantized=(2, 256, 64 * groups),
    )["quantized"]
    wanted = quantize_values(v, amax)
    differing = got8.view(torch.uint8) != wanted.view(torch.uint8)
    assert differing.float().mean() <= FP8_CODE_MISMATCH.bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA build of torch")
@pytest.mark.parametrize("head_dim", flash.HEAD_DIMS)
def test_flash_attention_equals_torch(device: Device, head_dim: int, tmp_path: Path) -> None:
    """Both against float32: ours loses no more than one and a half times what torch's loses."""
    lengths = (2048, 2048)
    inputs = make_qkv(lengths, head_dim, torch.bfloat16)
    spec = flash.kernel(flash.PLAIN, "bf16", head_dim)
    ours = run(device, spec, tmp_path, inputs, out=(2, lengths[0], 2 * head_dim))["out"]
    heads = inputs["v"].unflatten(-1, (2, head_dim)).transpose(1, 2)
    given = (t.cuda() for t in (inputs["q"], inputs["k"], heads))
    theirs = torch.nn.functional.scaled_dot_product_attention(*given).transpose(1, 2).flatten(2)
    exact = flash_attention(**inputs)
    assert rel_rms(ours, exact) <= 1.5 * rel_rms(theirs.cpu(), exact)
