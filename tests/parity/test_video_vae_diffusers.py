"""Second oracle: the video VAE of diffusers on the same random weights; published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.layouts.diffusers_configs import official_config
from ltx2rt_export.layouts.diffusers_names import official_names
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.video_vae import VideoDecoder, VideoEncoder, video_decoder
from ltx2rt_export.modules.video_vae_config import VideoDecoderConfig, VideoEncoderConfig
from tests.tolerances import TOLERANCES

ENCODER_LAYERS = {"19b": (4, 6, 6, 2, 2), "22b": (4, 6, 4, 2, 2)}
DECODER_LAYERS = {"19b": (5, 5, 5, 5), "22b": (4, 6, 4, 2, 2)}


def metadata(
    version: str, *, encoder_layers: tuple[int, ...], decoder_layers: tuple[int, ...]
) -> dict[str, Any]:
    """The `vae` object of a published file, with other layer counts."""
    down = [("space", 2), ("time", 2), ("all", 2), ("all", 2 if version == "19b" else 1)]
    up = [("all", 2)] * 3
    if version == "22b":
        up = [("space", 2), ("time", 2), ("all", 1), ("all", 2)]
    extra = {"residual": True} if version == "19b" else {}
    encoder: list[Any] = [["res_x", {"num_layers": encoder_layers[0]}]]
    for (kind, multiplier), layers in zip(down, encoder_layers[1:], strict=True):
        encoder.append([f"compress_{kind}_res", {"multiplier": multiplier}])
        encoder.append(["res_x", layers])
    decoder: list[Any] = [["res_x", decoder_layers[0]]]
    for (kind, multiplier), layers in zip(up, decoder_layers[1:], strict=True):
        decoder.append([f"compress_{kind}", {"multiplier": multiplier, **extra}])
        decoder.append(["res_x", {"num_layers": layers, "inject_noise": False}])
    config = {
        "_class_name": "CausalVideoAutoencoder",
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "timestep_conditioning": False,
    }
    if version == "22b":
        config["spatial_padding_mode"] = "zeros"
    return config


def entries(state: Mapping[str, torch.Tensor]) -> dict[str, TensorEntry]:
    return {
        name: TensorEntry(Path("vae.safetensors"), name, "float32", tuple(t.shape), 0, 0)
        for name, t in state.items()
    }


def diffusers_vae(version: str) -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "AutoencoderKLLTX2Video"):
        pytest.skip("this diffusers has no AutoencoderKLLTX2Video")
    older = version == "19b"
    torch.manual_seed(5)
    model = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 16, 32, 64 if older else 32),
        layers_per_block=(1, 2, 1, 1, 1),
        decoder_block_out_channels=(8, 16, 32) if older else (8, 16, 16, 32),
        decoder_layers_per_block=(1, 2, 1, 1) if older else (1, 2, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True,) * (3 if older else 4),
        decoder_inject_noise=(False,) * (4 if older else 5),
        upsample_type=("spatiotemporal",) * 3
        if older
        else ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(older,) * (3 if older else 4),
        upsample_factor=(2, 2, 2) if older else (2, 2, 1, 2),
        decoder_causal=False,
        decoder_spatial_padding_mode="reflect" if older else "zeros",
    ).eval()
    model.latents_mean.copy_(torch.randn(4))
    model.latents_std.copy_(torch.rand(4) + 0.5)
    return model


@pytest.mark.parametrize("version", ["19b", "22b"])
@pytest.mark.parametrize("with_metadata", [True, False])
@torch.no_grad()
def test_same_numbers_as_diffusers(version: str, with_metadata: bool) -> None:
    theirs = diffusers_vae(version)
    own = theirs.state_dict()
    names = official_names("video_vae", own)
    state = {official.removeprefix("vae."): own[n] for n, official in names.items()}
    decoder_layers = (1, 2, 1, 1) if version == "19b" else (1, 2, 1, 1, 1)
    config = metadata(version, encoder_layers=(1, 2, 1, 1, 1), decoder_layers=decoder_layers)
    translated = official_config("video_vae", dict(theirs.config))
    for config_class in (VideoEncoderConfig, VideoDecoderConfig):
        said = [config_class.from_checkpoint(c, entries(state)) for c in (config, translated)]
        assert said[0] == said[1]
    if not with_metadata:
        config = {}
    encoder = VideoEncoder(VideoEncoderConfig.from_checkpoint(config, entries(state)))
    decoder = VideoDecoder(VideoDecoderConfig.from_checkpoint(config, entries(state)))
    used = set()
    for module in (encoder, decoder):
        used |= set(module.state_dict())
        module.load_state_dict({n: state[n] for n in module.state_dict()})
    assert used == set(state)

    mean, std = (t.reshape(1, -1, 1, 1, 1) for t in (theirs.latents_mean, theirs.latents_std))
    video = torch.rand(2, 3, 17, 64, 96) * 2 - 1
    (latent,) = encoder(video)
    wanted = (theirs.encode(video).latent_dist.mode() - mean) / std
    close(latent, wanted)
    latent = torch.randn(2, 4, 3, 2, 3)
    close(decoder(latent)[0], theirs.decode(latent * std + mean).sample)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    bound = TOLERANCES["net"]
    assert got.shape == want.shape
    assert want.std() > 1e-2  # the networks did something
    torch.testing.assert_close(got, want, atol=bound.atol, rtol=bound.rtol)


@pytest.mark.parametrize(
    ("version", "encoder_millions", "decoder_millions", "encoder_tensors", "decoder_tensors"),
    [("19b", 694.10, 528.38, 94, 92), ("22b", 318.94, 407.17, 86, 86)],
)
def test_published_sizes(
    version, encoder_millions, decoder_millions, encoder_tensors, decoder_tensors
) -> None:
    config = metadata(
        version, encoder_layers=ENCODER_LAYERS[version], decoder_layers=DECODER_LAYERS[version]
    )
    width = 1024
    shapes = {
        "encoder.conv_in.conv.weight": (128, 48, 3, 3, 3),
        "encoder.conv_out.conv.weight": (129, 2048 if version == "19b" else 1024, 3, 3, 3),
        "decoder.conv_in.conv.weight": (width, 128, 3, 3, 3),
        "decoder.conv_out.conv.weight": (48, 128, 3, 3, 3),
        "per_channel_statistics.mean-of-means": (128,),
    }
    tensors = {n: TensorEntry(Path("v"), n, "bfloat16", s, 0, 0) for n, s in shapes.items()}
    encoder_config = VideoEncoderConfig.from_checkpoint(config, tensors)
    decoder_config = VideoDecoderConfig.from_checkpoint(config, tensors)
    assert encoder_config.scale_factors == decoder_config.scale_factors == (8, 32, 32)
    assert encoder_config.padding == "zeros"
    assert decoder_config.padding == ("reflect" if version == "19b" else "zeros")
    for module, millions, count in (
        (on_meta(lambda: VideoEncoder(encoder_config)), encoder_millions, encoder_tensors),
        (on_meta(lambda: VideoDecoder(decoder_config)), decoder_millions, decoder_tensors),
    ):
        state = module.state_dict()
        assert len(state) == count
        assert round(sum(t.numel() for t in state.values()) / 1e6, 2) == millions


def test_unsupported_values_are_listed_together() -> None:
    names = (
        "decoder.conv_in.conv.weight",
        "decoder.conv_out.conv.weight",
        "decoder.last_time_embedder.timestep_embedder.linear_1.weight",
    )
    shapes = dict(zip(names, ((32, 4, 3, 3, 3), (48, 4, 3, 3, 3), (8, 256)), strict=True))
    tensors = {n: TensorEntry(Path("v"), n, "float32", s, 0, 0) for n, s in shapes.items()}
    config = {
        "dims": 2,
        "norm_layer": "group_norm",
        "spatial_padding_mode": "circular",
        "decoder_blocks": [["attn", {}], ["res_x", {"num_layers": 1, "inject_noise": True}]],
    }
    with pytest.raises(UnsupportedError) as error:
        video_decoder(config, tensors)
    for part in (
        "dims=2",
        "norm_layer='group_norm'",
        "spatial_padding_mode='circular'",
        "timestep_conditioning",
        "decoder_blocks[0] is 'attn'",
        "inject_noise=True",
    ):
        assert part in str(error.value)
    with pytest.raises(UnsupportedError, match="residual and padding are unknown"):
        video_decoder({}, {n: e for n, e in tensors.items() if "time" not in n})
    with pytest.raises(UnsupportedError, match="use the file with the conv VAE"):
        video_decoder({"_class_name": "CausalDiffusionVAE"}, tensors)
    with pytest.raises(CheckpointError, match="has no convolutional video decoder"):
        video_decoder({}, {})
