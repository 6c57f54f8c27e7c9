"""Diffusion decoder: configurations that no golden case has, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltx2rt.errors import UnsupportedError
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.modules.diffusion_decoder import Features, PixelBlock, Pixels, rope_split
from ltx2rt_export.modules.diffusion_decoder_config import DiffusionDecoderConfig, Stage
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
    from ltx2rt_export.modules.diffusion_decoder import Context

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
    angles = torch.rand(3, 4, 5, 1, 8)
    arguments = (x, context, torch.randn(1, 7, 32), (angles.cos(), angles.sin()))
    bound = TOLERANCES["net"]
    with torch.no_grad():
        torch.testing.assert_close(
            gated(*arguments), plain(*arguments), rtol=bound.rtol, atol=bound.atol
        )
