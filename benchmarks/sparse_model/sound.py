"""Audio VAE and vocoders of released models (spec/audio.md §4 to §6)."""

from __future__ import annotations

from typing import Any

from benchmarks.sparse_model.files import Shapes, shapes_of
from ltx2rt_export.modules.audio_vae import AudioDecoder, AudioEncoder
from ltx2rt_export.modules.audio_vae_config import AudioVaeConfig
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.vocoder import BweVocoder, Vocoder
from ltx2rt_export.modules.vocoder_config import BweConfig, GeneratorConfig, VocoderConfig

#: the same in all versions
AUDIO_VAE: dict[str, Any] = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64},
    },
}

_FIRST = GeneratorConfig(
    initial_channels=1536,
    rates=(5, 2, 2, 2, 2, 2),
    kernels=(11, 4, 4, 4, 4, 4),
    activation="snakebeta",
    final="clamp",
    final_bias=False,
)
_SECOND = GeneratorConfig(
    initial_channels=512,
    rates=(6, 5, 2, 2, 2),
    kernels=(12, 11, 4, 4, 4),
    activation="snakebeta",
    final="none",
    final_bias=False,
)


def _structure(config: GeneratorConfig) -> dict[str, Any]:
    return {
        "upsample_initial_channel": config.initial_channels,
        "upsample_rates": list(config.rates),
        "upsample_kernel_sizes": list(config.kernels),
        "resblock_kernel_sizes": list(config.res_kernels),
        "resblock_dilation_sizes": [list(d) for d in config.res_dilations],
        "stereo": True,
    }


def _big(config: GeneratorConfig) -> dict[str, Any]:
    return {
        **_structure(config),
        "resblock": "AMP1",
        "activation": config.activation,
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
    }


#: LTX-2: HiFi-GAN
VOCODER_2 = {**_structure(GeneratorConfig()), "resblock": "1", "output_sampling_rate": 24000}

#: LTX-2.3 and 2.5: BigVGAN with bandwidth extension
VOCODER_23 = {
    "vocoder": _big(_FIRST),
    "bwe": {
        **_big(_SECOND),
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    },
}


def audio_vae() -> Shapes:
    """Tensors of the audio VAE."""
    encoder = shapes_of("audio_vae.", on_meta(lambda: AudioEncoder(AudioVaeConfig())))
    return encoder | shapes_of("audio_vae.", on_meta(lambda: AudioDecoder(AudioVaeConfig())))


def vocoder_2() -> Shapes:
    """Tensors of the vocoder of LTX-2."""
    config = VocoderConfig(generator=GeneratorConfig())
    return shapes_of("vocoder.", on_meta(lambda: Vocoder(config.generator)))


def vocoder_23() -> Shapes:
    """Tensors of the vocoder of LTX-2.3 and 2.5, with the basis that only training needs."""
    config = VocoderConfig(
        generator=_FIRST, bwe=BweConfig(generator=_SECOND), output_sampling_rate=48000
    )
    shapes = shapes_of("vocoder.", on_meta(lambda: BweVocoder(config)))
    basis = "vocoder.mel_stft.stft_fn."
    return shapes | {f"{basis}inverse_basis": shapes[f"{basis}forward_basis"]}
