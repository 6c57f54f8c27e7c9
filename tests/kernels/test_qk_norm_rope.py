"""QK norm + RoPE: kernel and function body against the float32 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltx2rt_kernels.qk_norm_rope.reference import qk_norm_rope
from ltx2rt_kernels.qk_norm_rope.spec import INTERLEAVED, SPLIT, kernel
from tests.kernels.interpreter import TORCH_DTYPES, Interpreter
from tests.tolerances import KERNEL_REL_RMS

HEADS, HEAD_DIM = 4, 32
LENGTHS = [(1, 1), (63, 111), (17, 2)]


def make_inputs(layout: str, dtype: str, lengths: tuple[int, int], batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    width = HEADS * HEAD_DIM
    inputs = {}
    for x, tokens in zip("qk", lengths, strict=True):
        outliers = torch.ones(width)
        outliers[5] = 30.0  # projections have outlier channels
        inputs[x] = torch.randn(batch, tokens, width, generator=generator) * outliers
        inputs[f"{x}_weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        angles = 6 * torch.randn(batch, HEADS, tokens, HEAD_DIM // 2, generator=generator)
        if layout == "interleaved":
            angles = angles.transpose(1, 2).flatten(2).repeat_interleave(2, dim=-1)
        inputs[f"{x}_cos"], inputs[f"{x}_sin"] = angles.cos(), angles.sin()
    return {n: t.to(TORCH_DTYPES[dtype]).contiguous() for n, t in inputs.items()}


def rel_rms(got: Tensor, want: Tensor) -> float:
    want = want.double()
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"q{n[0]}-k{n[1]}")
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_kernel_equals_reference(
    interpreter: Interpreter, layout: str, dtype: str, lengths: tuple[int, int]
) -> None:
    inputs = make_inputs(layout, dtype, lengths, batch=2 if max(lengths) < 100 else 1)
    operator = INTERLEAVED if layout == "interleaved" else SPLIT
    got = interpreter.run(kernel(operator, dtype, HEADS, HEAD_DIM), inputs)
    exact = {n: t.float() for n, t in inputs.items()}
    want = qk_norm_rope(**exact, num_heads=HEADS)
    for name, expected in zip(("q_out", "k_out"), want, strict=True):
        assert got[name].shape == expected.shape
        assert rel_rms(got[name], expected) <= KERNEL_REL_RMS[dtype].bound
