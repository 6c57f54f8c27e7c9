"""Second oracle: the latent upsampler of diffusers on the same random weights; published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.upsampler import (
    LatentUpsampler,
    UpsamplerConfig,
    spatial_upsampler,
    temporal_upsampler,
)
from tests.tolerances import TOLERANCES

VARIANTS = {
    "spatial_x2": {"use_rational_resampler": False},
    "rational_x2": {"rational_spatial_scale": 2.0},
    "rational_x1.5": {"rational_spatial_scale": 1.5},
    "temporal_x2": {"spatial_upsample": False, "temporal_upsample": True},
}


def diffusers_upsampler(variant: str) -> torch.nn.Module:
    module = pytest.importorskip("diffusers.pipelines.ltx2.latent_upsampler")
    torch.manual_seed(11)
    model = module.LTX2LatentUpsamplerModel(
        in_channels=8, mid_channels=64, num_blocks_per_stage=2, **VARIANTS[variant]
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def entries(state) -> dict[str, TensorEntry]:
    return {n: TensorEntry(Path("u"), n, "float32", tuple(t.shape), 0, 0) for n, t in state.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_same_numbers_as_diffusers(variant: str) -> None:
    theirs = diffusers_upsampler(variant)
    state = theirs.state_dict()
    ours = LatentUpsampler(UpsamplerConfig.from_checkpoint({}, entries(state)), raw=True)
    unused = set(state) - set(ours.state_dict())
    assert unused <= {"upsampler.blur_down.kernel"}  # x2 stores a kernel that it never applies
    ours.load_state_dict({n: state[n] for n in ours.state_dict()})
    bound = TOLERANCES["net"]
    for cells in ((3, 5, 8), (1, 4, 1)):
        latent = torch.randn(2, 8, *cells)
        want = theirs(latent)
        assert want.std() > 1e-2
        torch.testing.assert_close(ours(latent)[0], want, atol=bound.atol, rtol=bound.rtol)


@torch.no_grad()
def test_statistics_wrap_the_network() -> None:
    config = UpsamplerConfig(
        kind="spatial", scale=(2, 1), channels=8, mid_channels=32, num_blocks=1
    )
    torch.manual_seed(2)
    network = LatentUpsampler(config)
    mean, std = torch.randn(8), torch.rand(8) + 0.5
    network.per_channel_statistics.get_buffer("mean-of-means").copy_(mean)
    network.per_channel_statistics.get_buffer("std-of-means").copy_(std)
    raw = LatentUpsampler(config, raw=True)
    raw.load_state_dict({n: network.state_dict()[n] for n in raw.state_dict()})
    latent = torch.randn(1, 8, 2, 3, 4)
    mean, std = (t.reshape(1, -1, 1, 1, 1) for t in (mean, std))
    want = (raw(latent * std + mean)[0] - mean) / std
    torch.testing.assert_close(network(latent)[0], want, atol=1e-6, rtol=1e-6)  # same operations


@pytest.mark.parametrize(
    ("kind", "scale", "mid", "tensors", "millions"),
    [
        ("rational", (2, 1), 1024, 72, 497.87),
        ("spatial", (2, 1), 1024, 72, 497.87),
        ("rational", (3, 2), 1024, 73, 545.06),
        ("temporal", (1, 1), 512, 72, 130.97),
    ],
)
def test_published_sizes(kind, scale, mid, tensors, millions) -> None:
    config = UpsamplerConfig(kind=kind, scale=scale, mid_channels=mid)
    state = on_meta(lambda: LatentUpsampler(config, raw=True)).state_dict()
    assert len(state) == tensors  # the rational x2 file stores one more, unused
    assert round(sum(t.numel() for t in state.values()) / 1e6, 2) == millions


def test_wrong_files_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no latent upsampler"):
        spatial_upsampler({}, {}, None)
    config = UpsamplerConfig(kind="temporal", scale=(1, 1), mid_channels=32, num_blocks=1)
    tensors = entries(on_meta(lambda: LatentUpsampler(config, raw=True)).state_dict())
    with pytest.raises(UnsupportedError, match="holds a temporal_upsampler"):
        spatial_upsampler({}, tensors, None)
    assert temporal_upsampler({}, tensors, None).options["temporal_scale"] == 2
    with pytest.raises(CheckpointError, match="per_channel_statistics"):
        temporal_upsampler({}, tensors, {})
    config = UpsamplerConfig(kind="rational", scale=(3, 2), mid_channels=32, num_blocks=1)
    tensors = entries(on_meta(lambda: LatentUpsampler(config, raw=True)).state_dict())
    with pytest.raises(UnsupportedError, match=r"dims=2(?s:.)*spatial_scale=0.75"):
        spatial_upsampler({"dims": 2, "spatial_scale": 0.75}, tensors, None)
