"""Operators that work piece by piece: PyTorch and ONNX against the plain formula."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from ltx2rt_export.engines.build import count_attentions
from ltx2rt_export.modules.loop_ops import (
    DOMAIN,
    FUNCTIONS,
    QUERY_BLOCK,
    neighborhood_attention,
    swiglu,
)
from tests.tolerances import TOLERANCES

BOUND = TOLERANCES["net"]


def model_of(op: str, ranks: dict[str, int], **attributes: list[int]) -> onnx.ModelProto:
    """A model of one node of ours, all sizes dynamic."""
    inputs = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [f"{n}{i}" for i in range(r)])
        for n, r in ranks.items()
    ]
    rank = next(iter(ranks.values()))
    out = onnx.helper.make_tensor_value_info(
        "out", onnx.TensorProto.FLOAT, [f"out{i}" for i in range(rank)]
    )
    node = onnx.helper.make_node(op, list(ranks), ["out"], domain=DOMAIN, **attributes)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], op, inputs, [out]),
        opset_imports=[onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(DOMAIN, 1)],
        functions=[FUNCTIONS[DOMAIN, op]],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def session(
    op: str, ranks: dict[str, int], **attributes: list[int]
) -> onnxruntime.InferenceSession:
    model = model_of(op, ranks, **attributes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kernel: tuple[int, int, int]
) -> torch.Tensor:
    """The definition: every query against every key, those outside its window masked."""
    seen = []
    for length, size in zip(q.shape[2:5], kernel, strict=True):
        index = torch.arange(length)
        start = (index - size // 2).clamp(0, length - size)[:, None]
        seen.append((start <= index) & (index < start + size))
    mask = torch.einsum("ai,bj,ck->abcijk", *(s.float() for s in seen)).bool()
    q, k, v = (x.flatten(2, 4) for x in (q, k, v))
    scores = (q @ k.mT).masked_fill(~mask.flatten(3).flatten(0, 2), float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize(
    ("op", "ranks", "attributes"),
    [
        ("SwiGlu", {"x": 3, "gate": 2, "up": 2, "down": 2}, {"block": [7]}),
        (
            "NeighborhoodAttention",
            dict.fromkeys("qkv", 6),
            {"kernel": [1, 1, 1], "block": list(QUERY_BLOCK)},
        ),
    ],
)
def test_tensorrt_rtx_builds_the_body(
    op: str, ranks: dict[str, int], attributes: dict[str, list[int]], tmp_path: Path
) -> None:
    """Its loops are picky: one that slices at its own index is an internal error of the builder."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    onnx.save(model_of(op, ranks, **attributes), tmp_path / "op.onnx")
    command = [sys.executable, "-m", "tests.parity.build_rtx", tmp_path / "op.onnx", "SM89"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 7, 7), (11, 11, 11)])
def test_neighborhood_attention(kernel: tuple[int, int, int]) -> None:
    run = session(
        "NeighborhoodAttention",
        dict.fromkeys("qkv", 6),
        kernel=list(kernel),
        block=list(QUERY_BLOCK),
    )
    generator = torch.Generator().manual_seed(0)
    for extra in ((0, 0, 0), (2, 6, 1), (6, 1, 9)):
        sizes = (2, 2, *(k + e for k, e in zip(kernel, extra, strict=True)), 4)
        q, k, v = (torch.randn(sizes, generator=generator) for _ in range(3))
        want = masked_attention(q, k, v, kernel).reshape(sizes).numpy()
        eager = neighborhood_attention(q, k, v, kernel).numpy()
        (exported,) = run.run(None, {"q": q.numpy(), "k": k.numpy(), "v": v.numpy()})
        np.testing.assert_allclose(eager, want, BOUND.rtol, BOUND.atol)
        np.testing.assert_allclose(exported, want, BOUND.rtol, BOUND.atol)


def test_swiglu_in_pieces() -> None:
    run = session("SwiGlu", {"x": 3, "gate": 2, "up": 2, "down": 2}, block=[7])
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(12, 6, generator=generator) for _ in range(2))
    down = torch.randn(6, 12, generator=generator)
    weights = {"gate": gate.numpy(), "up": up.numpy(), "down": down.numpy()}
    for tokens in (1, 3, 7, 8, 14, 20):
        x = torch.randn(2, tokens, 6, generator=generator)
        want = functional.linear(
            functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down
        ).numpy()
        (exported,) = run.run(None, {"x": x.numpy(), **weights})
        np.testing.assert_allclose(swiglu(x, gate, up, down).numpy(), want, BOUND.rtol, BOUND.atol)
        np.testing.assert_allclose(exported, want, BOUND.rtol, BOUND.atol)


def test_attentions_in_loops_are_counted() -> None:
    facts = {"kernel": [3, 3, 3], "block": list(QUERY_BLOCK)}
    assert (
        count_attentions(model_of("NeighborhoodAttention", dict.fromkeys("qkv", 6), **facts)) == 1
    )
    ranks = {"x": 3, "gate": 2, "up": 2, "down": 2}
    assert count_attentions(model_of("SwiGlu", ranks, block=[7])) == 0
