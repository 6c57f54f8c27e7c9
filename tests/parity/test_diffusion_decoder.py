"""Diffusion decoder: configurations that no golden case has, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltx2rt.cli.inspect import inspect_engine
from ltx2rt.errors import UnsupportedError
from ltx2rt.progress import Job
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.component import Component
from ltx2rt_export.engines.weights import fold_transposes
from ltx2rt_export.modules.diffusion_decoder import (
    Context,
    Features,
    PixelBlock,
    Pixels,
    Rope,
    diffusion_features,
    diffusion_pixels,
    rope_split,
)
from ltx2rt_export.modules.diffusion_decoder_config import Cells, DiffusionDecoderConfig, Stage
from tests.parity.engine_models import builder
from tests.parity.exports import exported_in
from tests.tolerances import TOLERANCES

CONFIG: dict[str, Any] = {
    "_class_name": "CausalDiffusionVAE",
    "model_output_type": "x0",
    "decoder": {
        "_class_name": "NADiffusionDecoder",
        "stage_kernels": [[3, 7, 7], [3, 7, 7], [3, 5, 5], [3, 5, 5], [11, 11, 11]],
        "upsamples": [[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 2]],
        "stage5_kernel": [11, 11, 11],
        "timestep_scale_multiplier": 1000.0,
        "default_num_inference_steps": 1,
    },
}
CHANNELS, DEPTHS = (2048, 1024, 512, 512, 256), (4, 6, 4, 2, 8)
STRIDES = ((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2))


def shipped() -> DiffusionDecoderConfig:
    kernels = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5))
    rows = zip(CHANNELS, DEPTHS, kernels, STRIDES, CHANNELS[1:], strict=False)
    return DiffusionDecoderConfig(
        stages=tuple(
            Stage(channels=c, depth=d, kernel=k, stride=s, out_channels=w) for c, d, k, s, w in rows
        ),
        pixels=Stage(channels=256, depth=8, kernel=(11, 11, 11)),
        latent_channels=128,
        out_channels=3,
        patch_size=4,
        head_dim=64,
        time_width=384,
        frequencies=256,
        timestep_scale=1000.0,
        steps=1,
        prediction="x0",
        gated=False,
    )


def shipped_tensors() -> dict[str, TensorEntry]:
    """Names and shapes of the published decoder (spec/diffusion_decoder.md §2)."""
    facts = shipped()
    with torch.device("meta"):
        parts = (Features(facts), Context(facts), Pixels(facts))
    shapes = {n: tuple(w.shape) for part in parts for n, w in part.state_dict().items()}
    return {n: TensorEntry(Path("x"), n, "bfloat16", s, 0, 0) for n, s in shapes.items()}


def test_the_published_decoder_is_read_from_tensors_and_metadata() -> None:
    tensors = shipped_tensors()
    decoder = {n: e for n, e in tensors.items() if n.startswith("decoder.")}
    assert sum(e.num_elements for e in decoder.values()) == pytest.approx(417.1e6, rel=1e-4)
    read = DiffusionDecoderConfig.from_checkpoint(CONFIG, tensors)
    assert read == shipped()
    assert read.min_latent_cells == (3, 7, 7)
    assert read.scale_factors == (8, 32, 32)
    assert read.ghost_frames == 2


def test_all_problems_are_named() -> None:
    decoder = {**CONFIG["decoder"], "resampler_kind": "conv", "head_dim": 32, "patch_size": 8}
    config = {**CONFIG, "decoder": decoder, "model_output_type": "epsilon"}
    with pytest.raises(UnsupportedError) as caught:
        DiffusionDecoderConfig.from_checkpoint(config, shipped_tensors())
    for part in ("resampler_kind='conv'", "head_dim=32", "patch_size=8", "'epsilon'"):
        assert part in str(caught.value)
    with pytest.raises(UnsupportedError, match="neighbourhoods"):
        DiffusionDecoderConfig.from_checkpoint({}, shipped_tensors())


@pytest.mark.parametrize(
    ("head_dim", "split"),
    [(64, (16, 24, 24)), (16, (4, 6, 6)), (32, (8, 12, 12)), (24, (4, 10, 10))],
)
def test_rope_channels(head_dim: int, split: tuple[int, int, int]) -> None:
    assert rope_split(head_dim) == split


def test_static_gates_scale_the_branches() -> None:
    """The gates may be multiplied into the last layer of each branch (§2)."""
    torch.manual_seed(0)
    stage = Stage(channels=32, depth=1, kernel=(3, 3, 3))
    gated = PixelBlock(stage, 16, gated=True)
    for parameter in gated.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain = PixelBlock(stage, 16, gated=False)
    state = gated.state_dict()
    for gate, layer in (
        ("gate_msa", "attn.proj"),
        ("gate_mlp", "mlp.w_down"),
        ("gate_ctx", "context_proj"),
    ):
        scale = state.pop(gate)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * scale[:, None]
        if f"{layer}.bias" in state:
            state[f"{layer}.bias"] = state[f"{layer}.bias"] * scale
    plain.load_state_dict(state)
    x, context = torch.randn(2, 1, 3, 4, 5, 32)
    angles = torch.rand(3, 4, 5 + 2, 1, 8)  # a margin of one column on both sides
    arguments = (x, context, torch.randn(1, 7, 32), (angles.cos(), angles.sin()))
    bound = TOLERANCES["net"]
    with torch.no_grad():
        torch.testing.assert_close(
            gated(*arguments), plain(*arguments), rtol=bound.rtol, atol=bound.atol
        )


KERNELS = [(3, 3, 5), (1, 3, 1), (3, 1, 11), (1, 1, 4)]


def small_block(kernel: Cells, seed: int = 0) -> PixelBlock:
    torch.manual_seed(seed)
    block = PixelBlock(Stage(channels=32, depth=1, kernel=kernel), 16, gated=False)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def run_block(block: PixelBlock, x: Tensor, context: Tensor, shared: Tensor) -> Tensor:
    with torch.no_grad():
        return block(x, context, shared, Rope(16)(x, block.margin))


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x: Tensor, place: Sequence[int]) -> Tensor:
    """RoPE of one head's channels at a place (time, row, column): pairs are neighbours."""
    x, begin = x.clone().double(), 0
    for position, size in zip(place, rope_split(16), strict=True):
        for m in range(size // 2):
            angle = torch.tensor(position * 10000.0 ** (-2 * m / size), dtype=torch.float64)
            e, o = x[begin + 2 * m].clone(), x[begin + 2 * m + 1].clone()
            x[begin + 2 * m] = e * angle.cos() - o * angle.sin()
            x[begin + 2 * m + 1] = e * angle.sin() + o * angle.cos()
        begin += size
    return x


def one_cell(block: PixelBlock, h: Tensor, cell: Cells) -> Tensor:
    """Attention of one cell, by the definition (§3, §4 step 2): time and rows shift inward, columns
    do not, and a column outside is the outermost one at its own place.
    """
    sizes, (kt, kh, kw) = h.shape[:3], block.attn.kernel
    first = [min(max(i - k // 2, 0), n - k) for i, k, n in zip(cell, (kt, kh), sizes, strict=False)]
    places = itertools.product(
        range(first[0], first[0] + kt),
        range(first[1], first[1] + kh),
        range(cell[2] - kw // 2, cell[2] - kw // 2 + kw),
    )
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    found = []
    keys = [(p, h[p[0], p[1], min(max(p[2], 0), sizes[2] - 1)]) for p in places]
    for head in range(2):
        rows = [slice(32 * i + 16 * head, 32 * i + 16 * head + 16) for i in range(3)]
        q, k, v = ((weight[r], bias[r]) for r in rows)
        query = turned(normed(q[0] @ h[cell] + q[1], block.attn.q_norm.weight) / 4, cell)
        scores = torch.stack(
            [query @ turned(normed(k[0] @ x + k[1], block.attn.k_norm.weight), p) for p, x in keys]
        )
        values = torch.stack([v[0] @ x + v[1] for _, x in keys]).double()
        found.append(scores.softmax(0) @ values)
    return block.attn.proj(torch.cat(found).float())


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_pixel_block_is_the_definition_written_out(kernel: Cells) -> None:
    block = small_block(kernel)
    sizes = (kernel[0] + 1, kernel[1] + 1, 6)
    x, context = torch.randn(2, 1, *sizes, 32)
    shared = torch.randn(1, 7, 32)
    got = run_block(block, x, context, shared)[0]
    with torch.no_grad():
        rows = shared[0] + block.scale_shift_table
        want = x[0] + block.context_proj(context[0])
        h = normed(want, block.norm1.weight) * (1 + rows[0]) + rows[1]
        attended = torch.zeros_like(want)
        for cell in itertools.product(*map(range, sizes)):
            attended[cell] = one_cell(block, h, cell)
        want = want + attended
        h = normed(want, block.norm2.weight) * (1 + rows[3]) + rows[4]
        gate, up, down = (getattr(block.mlp, f"w_{n}").weight for n in ("gate", "up", "down"))
        opened = h @ gate.T
        want = want + (opened * opened.sigmoid() * (h @ up.T)) @ down.T
    bound = TOLERANCES["net"]
    torch.testing.assert_close(got, want, rtol=bound.rtol, atol=bound.atol)


@pytest.mark.parametrize("kernel", KERNELS)
def test_columns_of_a_constant_width_stay_equal(kernel: Cells) -> None:
    """With windows that shift inward they would not: the outer columns see other distances."""
    block = small_block(kernel)
    column = torch.randn(2, 1, kernel[0] + 2, kernel[1] + 1, 1, 32)
    for width in (1, 2, 7):
        x, context = column.expand(-1, -1, -1, -1, width, -1)
        out = run_block(block, x, context, torch.randn(1, 7, 32))
        spread = (out - out[:, :, :, :1]).abs().max() / out.abs().max()
        assert float(spread) <= 1e-5  # float32 sums in another order


def test_rows_of_a_constant_height_differ() -> None:
    """Time and rows keep the shifted windows."""
    block = small_block((1, 5, 5))
    row = torch.randn(2, 1, 3, 1, 6, 32)
    x, context = row.expand(-1, -1, -1, 8, -1, -1)
    out = run_block(block, x, context, torch.randn(1, 7, 32))
    assert float((out - out[:, :, :1]).abs().max()) > 1e-3


def small_parts() -> tuple[Component, Component]:
    """`diffusion_features`, whose options profiles read, and `diffusion_pixels`, small."""
    config = dataclasses.replace(
        shipped(),
        pixels=Stage(channels=32, depth=2, kernel=(3, 5, 5)),
        stages=tuple(
            dataclasses.replace(s, channels=32, depth=1, out_channels=32) for s in shipped().stages
        ),
        head_dim=16,
        time_width=16,
        frequencies=32,
    )
    with torch.device("meta"):
        parts = (Features(config), Context(config), Pixels(config))
    shapes = {n: tuple(w.shape) for part in parts for n, w in part.state_dict().items()}
    tensors = {n: TensorEntry(Path("x"), n, "bfloat16", s, 0, 0) for n, s in shapes.items()}
    vae = {**CONFIG, "decoder": {**CONFIG["decoder"], "stage5_kernel": [3, 5, 5]}}
    return diffusion_features(vae, tensors), diffusion_pixels(vae, tensors)


def test_tensorrt_rtx_builds_the_pixel_stage(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    features, pixels = small_parts()
    graph = fold_transposes(exported_in(pixels, "bf16"))
    options = {features.name: features.options}
    made = builder(tmp_path, "224x256x17", options=options, precision="bf16", target=("sm89",))
    entry = made.build(graph, "bf16", None, tmp_path, Job())
    inputs = {t["name"]: tuple(t["shape"]) for t in inspect_engine(tmp_path / entry.file)["inputs"]}
    assert inputs["noisy_patches"] == (*inputs["context"][:4], 48)
    assert entry.buckets[0].sizes["Wc"][1:] == (56, 56)  # the engine widens the grid itself
