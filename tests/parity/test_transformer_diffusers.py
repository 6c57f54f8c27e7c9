"""Second oracle: the transformer of diffusers, on the same tiny weights.

diffusers 0.42 forms the timesteps of the exchange between the streams by older rules; they agree
with the current one when all tokens share one sigma (spec/transformer.md §6.2).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ltx2rt.components.transformer import ModalityInput
from ltx2rt_export.layouts.diffusers_names import official_names
from tests.parity import tiny_transformer as tiny
from tests.tolerances import TOLERANCES

pytest.importorskip("diffusers")

SIGMA = np.float32(0.725)


def diffusers_model(generation: str, rope_type: str) -> torch.nn.Module:
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    newer = generation != "19b"
    model = LTX2VideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        gated_attn=newer,
        cross_attn_mod=newer,
        audio_in_channels=16,
        audio_out_channels=16,
        audio_num_attention_heads=4,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=32,
        audio_gated_attn=newer,
        audio_cross_attn_mod=newer,
        num_layers=2,
        caption_channels=24,
        rope_type=rope_type,
        use_prompt_embeddings=not newer,
        ff_bias=generation != "2.5",
        use_keyframes_abs_pos_embedding=generation == "2.5",
    ).eval()
    config = tiny.tiny_config(generation, rope_type=rope_type)
    weights = {f"model.diffusion_model.{n}": w for n, w in tiny.weights(config).items()}
    names = official_names("transformer", model.state_dict())
    model.load_state_dict({n: torch.from_numpy(weights.pop(o)) for n, o in names.items()})
    assert not weights
    return model


def one_sigma(stream: ModalityInput) -> ModalityInput:
    batch, tokens = stream.latent.shape[:2]
    return dataclasses.replace(
        stream,
        sigma=np.full(batch, SIGMA),
        timesteps=np.full((batch, tokens, 1), SIGMA),
    )


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_velocities_equal_diffusers(generation: str, rope_type: str, tmp_path: Path) -> None:
    config = tiny.tiny_config(generation, rope_type=rope_type)
    file = tiny.write_checkpoint(tmp_path / "model.safetensors", config)
    streams = {name: one_sigma(stream) for name, stream in tiny.inputs(config).items()}
    video, audio = streams["video"], streams["audio"]
    model = tiny.torch_transformer(file, metadata={**tiny.METADATA, "rope_type": rope_type})
    got = model(video, audio)
    sigma = torch.from_numpy(video.sigma) * 1000
    extra = {}
    if config.keyframes_embedding:
        extra["video_keyframes_mask"] = torch.from_numpy(video.keyframes_mask)
    with torch.no_grad():
        want = diffusers_model(generation, rope_type)(
            hidden_states=torch.from_numpy(video.latent),
            audio_hidden_states=torch.from_numpy(audio.latent),
            encoder_hidden_states=torch.from_numpy(video.context),
            audio_encoder_hidden_states=torch.from_numpy(audio.context),
            timestep=torch.from_numpy(video.timesteps[..., 0]) * 1000,
            audio_timestep=torch.from_numpy(audio.timesteps[..., 0]) * 1000,
            sigma=sigma,
            audio_sigma=sigma,
            video_coords=torch.from_numpy(video.positions),
            audio_coords=torch.from_numpy(audio.positions),
            return_dict=False,
            **extra,
        )
    bound = TOLERANCES["dit"]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=bound.rtol, atol=bound.atol)
