"""Second oracle: audio VAE and vocoders of diffusers, on tiny random weights, by official names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ltx2rt_export.modules.audio_vae import (
    AudioDecoder,
    AudioMelEncoder,
    audio_decoder,
    audio_mel_encoder,
)
from ltx2rt_export.modules.audio_vae_config import AudioVaeConfig
from ltx2rt_export.modules.mel_config import MelConfig
from ltx2rt_export.modules.vocoder import BweVocoder, Vocoder, vocoder
from ltx2rt_export.modules.vocoder_config import BweConfig, GeneratorConfig, VocoderConfig
from ltx2rt_export.reference import TorchEngine
from tests.parity.audio_models import BWE, GENERATOR, loaded, random_tensors
from tests.tolerances import TOLERANCES

pytest.importorskip("diffusers")

OFFICIAL_TO_DIFFUSERS = {
    "conv_pre": "conv_in",
    "ups": "upsamplers",
    "resblocks": "resnets",
    "act_post": "act_out",
    "conv_post": "conv_out",
}


def near(got: np.ndarray, want: torch.Tensor, kind: str = "net") -> None:
    assert want.std() > 1e-2  # a comparison of constants would prove nothing
    bound = TOLERANCES[kind]
    np.testing.assert_allclose(got, want.numpy(), rtol=bound.rtol, atol=bound.atol)


@pytest.mark.parametrize("attention", [False, True])
def test_audio_vae(tmp_path: Path, *, attention: bool) -> None:
    from diffusers import AutoencoderKLLTX2Audio

    config = AudioVaeConfig(
        widths=(8, 16, 32),
        stem_channels=8,
        latent_channels=4,
        mid_attention=attention,
        mel=MelConfig(mel_bins=16),
    )

    class Both(AudioMelEncoder):
        def __init__(self) -> None:
            super().__init__(config)
            self.decoder = AudioDecoder(config).decoder

    tensors = random_tensors(tmp_path / "vae.safetensors", Both, 1)
    theirs = AutoencoderKLLTX2Audio(
        base_channels=8, latent_channels=4, mel_bins=16, mid_block_add_attention=attention
    ).eval()
    state = loaded(tensors)
    mean = state.pop("per_channel_statistics.mean-of-means").reshape(1, 4, 1, 4)
    std = state.pop("per_channel_statistics.std-of-means").reshape(1, 4, 1, 4)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert set(missing) == {"latents_mean", "latents_std"}
    assert not unexpected

    rng = np.random.default_rng(2)
    mel = rng.standard_normal((2, 2, 18, 16)).astype(np.float32)
    latent = rng.standard_normal((1, 4, 3, 4)).astype(np.float32)
    with torch.no_grad():
        encoded = (theirs.encode(torch.from_numpy(mel)).latent_dist.mode() - mean) / std
        decoded = theirs.decode(torch.from_numpy(latent) * std + mean).sample
    encoder, decoder = (TorchEngine(f({}, tensors)) for f in (audio_mel_encoder, audio_decoder))
    near(encoder({"mel": mel})["audio_latent"], encoded)
    near(decoder({"audio_latent": latent})["mel"], decoded)


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        ".".join(
            OFFICIAL_TO_DIFFUSERS.get(part, part) for part in name.split(".") if part != "lowpass"
        ): value
        for name, value in state.items()
    }


def load(theirs: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    shaped = theirs.state_dict()
    values = {k: v.reshape(shaped[k].shape) for k, v in renamed(state).items()}
    missing, unexpected = theirs.load_state_dict(values, strict=False)
    assert not unexpected
    assert all(name.endswith("inverse_basis") for name in missing)
    return theirs.eval()


def generator(source: dict, **changes) -> GeneratorConfig:
    return GeneratorConfig(
        in_channels=8,
        initial_channels=source["upsample_initial_channel"],
        rates=tuple(source["upsample_rates"]),
        kernels=tuple(source["upsample_kernel_sizes"]),
        res_kernels=tuple(source["resblock_kernel_sizes"]),
        res_dilations=tuple(tuple(d) for d in source["resblock_dilation_sizes"]),
        **changes,
    )


def test_hifi_gan(tmp_path: Path) -> None:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    config = generator(GENERATOR)
    tensors = random_tensors(tmp_path / "vocoder.safetensors", lambda: Vocoder(config), 3)
    theirs = load(
        LTX2Vocoder(
            in_channels=8,
            hidden_channels=8,
            upsample_kernel_sizes=[11, 4],
            upsample_factors=[5, 2],
            resnet_kernel_sizes=[3, 7],
            resnet_dilations=[[1, 3], [1, 5]],
        ),
        loaded(tensors),
    )
    mel = np.random.default_rng(4).standard_normal((2, 2, 9, 4)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(mel))
    near(TorchEngine(vocoder(GENERATOR, tensors))({"mel": mel})["waveform"], want)


def test_bandwidth_extension(tmp_path: Path) -> None:
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    snake = {"activation": "snakebeta", "final_bias": False}
    config = VocoderConfig(
        generator=generator(BWE["vocoder"], final="clamp", **snake),
        bwe=BweConfig(
            generator=generator(BWE["bwe"], final="none", **snake),
            n_fft=16,
            hop_length=5,
            mel_bins=4,
        ),
        output_sampling_rate=48000,
    )
    tensors = random_tensors(tmp_path / "vocoder.safetensors", lambda: BweVocoder(config), 5)
    shared = {
        "in_channels": 8,
        "hidden_channels": 8,
        "resnet_kernel_sizes": [3, 7],
        "resnet_dilations": [[1, 3], [1, 5]],
    }
    theirs = LTX2VocoderWithBWE(
        **shared,
        **{f"bwe_{name}": value for name, value in shared.items()},
        upsample_kernel_sizes=[11, 4],
        upsample_factors=[5, 2],
        bwe_upsample_kernel_sizes=[11, 5],
        bwe_upsample_factors=[5, 3],
        final_act_fn="clamp",
        filter_length=16,
        hop_length=5,
        window_length=16,
        num_mel_channels=4,
    )
    theirs = load(theirs, loaded(tensors))
    mel = np.random.default_rng(6).standard_normal((2, 2, 9, 4)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(mel))
    assert want.shape == (2, 2, 9 * 30)
    near(TorchEngine(vocoder(BWE, tensors))({"mel": mel})["waveform"], want, "deep")
