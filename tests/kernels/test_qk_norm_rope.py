"""QK norm + RoPE: kernel and function body against the float32 reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltx2rt_kernels.qk_norm_rope.reference import qk_norm_rope
from ltx2rt_kernels.qk_norm_rope.spec import INTERLEAVED, SPLIT, kernel
from tests.kernels.graphs import one_node_model, rtx_kernels, run_onnxruntime
from tests.kernels.interpreter import TORCH_DTYPES, Interpreter
from tests.kernels.numerics import rel_rms
from tests.tolerances import KERNEL_REL_RMS

HEADS, HEAD_DIM = 4, 32
LENGTHS = [(1, 1), (63, 111), (17, 2)]
OPERATORS = {"split": SPLIT, "interleaved": INTERLEAVED}


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
    names = [t.name for t in SPLIT.inputs]
    return {n: inputs[n].to(TORCH_DTYPES[dtype]).contiguous() for n in names}


def check(got: dict[str, Tensor], inputs: dict[str, Tensor], dtype: str) -> None:
    exact = {n: t.float() for n, t in inputs.items()}
    want = qk_norm_rope(**exact, num_heads=HEADS)
    for name, expected in zip(("q_out", "k_out"), want, strict=True):
        assert got[name].shape == expected.shape
        assert got[name].dtype == TORCH_DTYPES[dtype]
        assert rel_rms(got[name], expected) <= KERNEL_REL_RMS[dtype].bound


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"q{n[0]}-k{n[1]}")
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", OPERATORS)
def test_kernel_equals_reference(
    interpreter: Interpreter, layout: str, dtype: str, lengths: tuple[int, int]
) -> None:
    inputs = make_inputs(layout, dtype, lengths, batch=2 if max(lengths) < 100 else 1)
    got = interpreter.run(kernel(OPERATORS[layout], dtype, HEADS, HEAD_DIM), inputs)
    check(got, inputs, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("layout", OPERATORS)
def test_function_equals_reference(layout: str, dtype: str) -> None:
    inputs = make_inputs(layout, dtype, (63, 111), batch=2)
    shapes = {n: t.shape for n, t in inputs.items()}
    model = one_node_model(OPERATORS[layout], {"T": dtype}, shapes, num_heads=HEADS)
    check(run_onnxruntime(model, inputs), inputs, dtype)


def test_reference_layouts_agree() -> None:
    """One rotation, two layouts: interleaving the lanes of a head turns one into the other."""
    split = make_inputs("split", "fp32", (7, 5), batch=1)
    inner = torch.arange(HEAD_DIM).reshape(2, -1).T.flatten()  # 0, Dh/2, 1, Dh/2 + 1, ...
    lanes = (torch.arange(HEADS)[:, None] * HEAD_DIM + inner).flatten()
    interleaved = {n: t[..., lanes] for n, t in split.items() if n[1:] in ("", "_weight")}
    for name in ("q_cos", "q_sin", "k_cos", "k_sin"):
        table = split[name].transpose(1, 2).flatten(2)
        interleaved[name] = table.repeat_interleave(2, dim=-1)
    want = qk_norm_rope(**split, num_heads=HEADS)
    got = qk_norm_rope(**interleaved, num_heads=HEADS)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b[..., inner], rtol=1e-6, atol=1e-6)


def test_interpreter_sees_reads_outside(interpreter: Interpreter) -> None:
    """The harness itself: a kernel told that q is longer than it is must fail the guards."""
    inputs = make_inputs("split", "fp32", (3, 3), batch=1)
    spec = kernel(SPLIT, "fp32", HEADS, HEAD_DIM)
    longer = dataclasses.replace(spec.scalars[0], value="Tq + 1")
    wrong = dataclasses.replace(
        spec, scalars=(longer, spec.scalars[1]), grid=("2 * (Tq + 1)", "B", "1")
    )
    with pytest.raises(AssertionError, match="wrote outside"):
        interpreter.run(wrong, inputs)


def test_rtx_inlines_the_body(tmp_path: Path) -> None:
    """Real widths, one engine, no plugin: two generated kernels a tensor, none of them alone for
    a transpose.
    """
    width, half = 4096, 64
    shapes = {x: ["B", f"T{x}", width] for x in "qk"}
    shapes |= {f"{x}_weight": [width] for x in "qk"}
    shapes |= {f"{x}_{t}": ["B", 32, f"T{x}", half] for x in "qk" for t in ("cos", "sin")}
    model = one_node_model(SPLIT, {"T": "bf16"}, shapes)
    kernels = {k.split("_0x")[0] for k in rtx_kernels(model, tmp_path)}
    assert len(kernels) == 2
    assert not any(k.startswith("__myl_Tran") for k in kernels)
