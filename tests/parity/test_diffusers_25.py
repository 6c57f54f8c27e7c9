"""Parts that models of LTX-2.5 have in diffusers: its own modules write them, and ours, filled from
these files, compute the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ltx2rt.errors import CheckpointError
from ltx2rt.weights.codecs.stored import storage_problems
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.component import Component
from ltx2rt_export.inspect import inspect_path
from ltx2rt_export.kinds import split_components
from ltx2rt_export.layouts.open import open_weights
from ltx2rt_export.modules import diffusion_decoder
from ltx2rt_export.modules.duration_head import duration_head
from ltx2rt_export.modules.meta import load_module
from ltx2rt_export.version import read_config
from tests.parity.golden import REPOSITORY, Runner


def loaded(component: Component) -> nn.Module:
    return load_module(component, torch.float32)


def test_duration_head(tmp_path: Path) -> None:
    from diffusers.pipelines.ltx2.duration_head import LTX2DurationHead

    torch.manual_seed(0)
    theirs = LTX2DurationHead(
        32, 16, pooler_hidden_dim=24, num_queries=2, num_pooler_heads=3, mlp_hidden_dim=20
    )
    theirs.save_pretrained(tmp_path)
    weights = open_weights(tmp_path)
    parts = split_components(weights)
    made = duration_head(read_config(weights)["duration_head"], parts["duration_head"])
    video, audio = torch.randn(2, 7, 32), torch.randn(2, 5, 16)
    with torch.no_grad():
        want = theirs(video, audio)
        (found,) = loaded(made)(video_context=video, audio_context=audio)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    joined = parts["duration_head"]["attention_pooler.cross_attn.in_proj_weight"]
    assert joined.shape == (72, 24)
    assert joined.encoding is not None
    assert not storage_problems(joined.shape, joined.dtype, joined.encoding)
    assert storage_problems((48, 24), joined.dtype, joined.encoding)
    assert storage_problems(joined.shape, "bfloat16", joined.encoding)
    assert inspect_path(tmp_path)["kind"] == "duration_head"


def test_a_part_without_keys_is_refused(tmp_path: Path) -> None:
    from diffusers.pipelines.ltx2.duration_head import LTX2DurationHead

    LTX2DurationHead(8, 8, pooler_hidden_dim=8, mlp_hidden_dim=8).save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    del tensors["attention_pooler.to_k.bias"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"but no attention_pooler\.to_k\.bias"):
        open_weights(tmp_path)


def test_diffusion_decoder(tmp_path: Path) -> None:
    """Windows of one column: at the sides of a picture, diffusers shifts wider ones inward, the
    official decoder does not (spec/diffusion_decoder.md §4).
    """
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
    from diffusers.models.autoencoders.ltx2_diffusion_decoder import (
        LTX2VideoDiffusionDecoderModel,
    )

    torch.manual_seed(0)
    kernels = ((3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    theirs = LTX2VideoDiffusionDecoderModel(
        latent_channels=128, decoder_head_dim=16, decoder_stage_channels=(64, 32, 16, 16, 16),
        decoder_stage_depths=(1,) * 5, decoder_stage_kernels=kernels,
        decoder_upsample_channel_reductions=(2, 2, 1, 1), decoder_stage5_kernel=(3, 5, 1),
        decoder_t_emb_dim=32,
    )  # fmt: skip
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn_like(weight) * 0.1)
    theirs.save_pretrained(tmp_path / "diffusion_decoder")
    AutoencoderKLLTX2Video(
        block_out_channels=(128,) * 4, layers_per_block=(1,) * 5,
        decoder_block_out_channels=(8, 16, 16, 32), decoder_layers_per_block=(1,) * 5,
        decoder_spatio_temporal_scaling=(True,) * 4, decoder_inject_noise=(False,) * 5,
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(False,) * 4, upsample_factor=(2, 2, 1, 2), decoder_causal=False,
        decoder_spatial_padding_mode="zeros",
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    weights = open_weights(tmp_path / "diffusion_decoder")
    config, tensors = read_config(weights)["vae"], split_components(weights)["video_vae"]
    features, context, pixels = (
        loaded(make(config, tensors))
        for make in (
            diffusion_decoder.diffusion_features,
            diffusion_decoder.diffusion_context,
            diffusion_decoder.diffusion_pixels,
        )
    )
    assert "encoder.conv_in.conv.weight" in tensors  # that of vae/, whose latents these are
    assert not any(name.startswith("decoder.up_blocks") for name in tensors)
    latent, noise = torch.randn(1, 128, 3, 3, 3), torch.randn(1, 3, 5, 96, 96)
    decoder = theirs.decoder
    with torch.no_grad():
        want = decoder.forward_stages_1_to_3(latent)
        found = features(torch.cat([latent, latent[:, :, -1:], latent[:, :, -1:]], dim=2))[0]
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
        want = decoder.forward_stage_4(want, drop_leading_frame=False, crop_trailing_ghost=False)
        (found,) = context(found)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
        time, frames = torch.ones(1), noise.shape[2]
        want = decoder.forward_diffusion_step(want[:, :frames], noise, time)
        (found,) = pixels(patches(noise, 4), found[:, :frames], time)
    torch.testing.assert_close(found, patches(want, 4), rtol=1e-3, atol=1e-4)


def patches(video: torch.Tensor, size: int) -> torch.Tensor:
    """`[B, 3, F, H, W]` to `[B, F, H/size, W/size, 3 size^2]`, channels c, column, row."""
    batch, colours, frames, height, width = video.shape
    cut = video.reshape(batch, colours, frames, height // size, size, width // size, size)
    return cut.permute(0, 2, 3, 5, 1, 6, 4).flatten(4)


def test_a_decoder_alone_has_no_encoder(tmp_path: Path) -> None:
    from diffusers.models.autoencoders.ltx2_diffusion_decoder import (
        LTX2VideoDiffusionDecoderModel,
    )

    LTX2VideoDiffusionDecoderModel(
        latent_channels=8, decoder_head_dim=16, decoder_stage_channels=(32, 16, 16, 16, 16),
        decoder_stage_depths=(1,) * 5, decoder_upsample_channel_reductions=(2, 1, 1, 1),
        decoder_t_emb_dim=8,
    ).save_pretrained(tmp_path)  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["decoder_t_emb_dim"] == 8
    names = split_components(open_weights(tmp_path))["video_vae"]
    assert not any(name.startswith("encoder.") for name in names)
    assert "per_channel_statistics.mean-of-means" in names


def test_the_official_decoder_is_left_as_it_is() -> None:
    """Its file has names of both: what it says of itself is needed."""
    path = Runner(REPOSITORY / "tests/golden", "torch").checkpoint(
        "ltx-2.5-tiny-video-vae-bf16.safetensors"
    )
    opened, file = open_weights(path), SafetensorsFile(path)
    assert dict(opened.metadata) == dict(file.metadata)
    assert opened.keys() == file.keys()
    assert any(name.startswith("encoder.") for name in opened)
