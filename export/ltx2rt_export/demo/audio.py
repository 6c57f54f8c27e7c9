"""The demo's audio VAE and vocoder with bandwidth extension (structures of LTX-2.3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltx2rt.engine import Array
from ltx2rt_export.demo.random_weights import RandomWeights

MEL_BINS = 64
Z_CHANNELS = 8
#: the official audio VAE derives this from mel bins and latent width: it cannot be smaller
CHANNELS = Z_CHANNELS * MEL_BINS // 4
LEVELS = 3

AUDIO_VAE_CONFIG: dict[str, Any] = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": MEL_BINS,
                "z_channels": Z_CHANNELS,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": CHANNELS,
                "ch_mult": [1] * LEVELS,
                "num_res_blocks": 1,
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
        "audio": {
            "sampling_rate": 16000,
            "max_wav_value": 32768.0,
            "duration": 5.12,
            "stereo": True,
            "causal_padding": 3,
        },
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": MEL_BINS, "mel_fmin": 0, "mel_fmax": 8000},
    },
}

_GENERATOR: dict[str, Any] = {
    "resblock": "AMP1",
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
VOCODER_CONFIG: dict[str, Any] = {
    "vocoder": {
        "upsample_initial_channel": 64,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
        **_GENERATOR,
    },
    "bwe": {
        "upsample_initial_channel": 32,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        **_GENERATOR,
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": MEL_BINS,
    },
}


def write_audio_vae(weights: RandomWeights) -> None:
    """Add encoder, decoder and statistics under `audio_vae.`."""
    root = "audio_vae."

    def conv(name: str, out: int, channels: int, gain: float = 1.0, bias: float = 0.0) -> None:
        weights.layer(f"{root}{name}", (out, channels, 3, 3), gain, bias)

    def block(name: str) -> None:
        conv(f"{name}.conv1.conv", CHANNELS, CHANNELS)
        conv(f"{name}.conv2.conv", CHANNELS, CHANNELS)

    conv("encoder.conv_in.conv", CHANNELS, 2)
    conv("encoder.conv_out.conv", 2 * Z_CHANNELS, CHANNELS, gain=2.0)
    conv("decoder.conv_in.conv", CHANNELS, Z_CHANNELS)
    # log-mel values of soft sound: around e^-4
    conv("decoder.conv_out.conv", 2, CHANNELS, gain=3.0, bias=-4.0)
    for part in ("encoder", "decoder"):
        block(f"{part}.mid.block_1")
        block(f"{part}.mid.block_2")
    for level in range(LEVELS):
        block(f"encoder.down.{level}.block.0")
        block(f"decoder.up.{level}.block.0")
        block(f"decoder.up.{level}.block.1")
        if level < LEVELS - 1:
            conv(f"encoder.down.{level}.downsample.conv", CHANNELS, CHANNELS)
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv.conv", CHANNELS, CHANNELS)
    features = Z_CHANNELS * MEL_BINS // 4
    weights.normal(f"{root}per_channel_statistics.mean-of-means", (features,), 0.02)
    weights.normal(f"{root}per_channel_statistics.std-of-means", (features,), 0.02, 1.0)


def write_vocoder(weights: RandomWeights) -> None:
    """Add both generators and the mel front end under `vocoder.`."""
    _write_generator(weights, "vocoder.vocoder.", VOCODER_CONFIG["vocoder"], volume=0.15)
    _write_generator(weights, "vocoder.bwe_generator.", VOCODER_CONFIG["bwe"], volume=0.02)
    bwe = VOCODER_CONFIG["bwe"]
    basis = _stft_basis(bwe["n_fft"])
    weights.put("vocoder.mel_stft.stft_fn.forward_basis", basis)
    # stored by official files, never read: only the analysis direction is used
    scale = bwe["hop_length"] / bwe["n_fft"]
    weights.put("vocoder.mel_stft.stft_fn.inverse_basis", basis * scale)
    bins = bwe["n_fft"] // 2 + 1
    weights.put("vocoder.mel_stft.mel_basis", _mel_basis(bins, bwe["input_sampling_rate"]))


def _write_generator(
    weights: RandomWeights, root: str, config: dict[str, Any], volume: float
) -> None:
    width = config["upsample_initial_channel"]
    # log-mel inputs are about -4: the gain brings them to order one
    weights.layer(f"{root}conv_pre", (width, 2 * MEL_BINS, 7), gain=0.25)
    kernels, dilations = config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]
    rates = zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True)
    for stage, (rate, kernel) in enumerate(rates):
        # each output sample sees kernel / rate taps of a transposed convolution
        shape = (width, width // 2, kernel)
        fan_in = max(width * kernel // rate, 1)
        weights.normal(f"{root}ups.{stage}.weight", shape, fan_in**-0.5)
        width //= 2
        weights.normal(f"{root}ups.{stage}.bias", (width,), 0.02)
        for index, (size, steps) in enumerate(zip(kernels, dilations, strict=True)):
            block = f"{root}resblocks.{len(kernels) * stage + index}."
            for step in range(len(steps)):
                for half, gain in (("1", 1.0), ("2", 0.4)):
                    _write_activation(weights, f"{block}acts{half}.{step}", width)
                    weights.layer(f"{block}convs{half}.{step}", (width, width, size), gain)
    _write_activation(weights, f"{root}act_post", width)
    weights.layer(f"{root}conv_post", (2, width, 7), gain=volume, bias=None)


def _write_activation(weights: RandomWeights, name: str, width: int) -> None:
    weights.normal(f"{name}.act.alpha", (width,), 0.1)
    weights.normal(f"{name}.act.beta", (width,), 0.1)
    taps = low_pass_taps().reshape(1, 1, -1)
    weights.put(f"{name}.upsample.filter", taps)
    weights.put(f"{name}.downsample.lowpass.filter", taps)


def low_pass_taps() -> Array:
    """12-tap Kaiser-windowed sinc, cutoff a quarter of the rate (spec/audio.md §6.1)."""
    beta = 0.1102 * (2.285 * 5 * np.pi * 1.2 + 7.95 - 8.7)
    taps = np.kaiser(12, beta) * np.sinc(0.5 * (np.arange(12) - 5.5))
    return np.asarray(taps / taps.sum())


def _stft_basis(length: int) -> Array:
    """`[length + 2, 1, length]`: Hann-windowed cosines, then negative sines."""
    steps = np.arange(length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * steps / length)
    angles = 2 * np.pi * (np.arange(length // 2 + 1)[:, None] * steps % length) / length
    return np.concatenate([np.cos(angles), -np.sin(angles)])[:, None] * window


def _mel_basis(bins: int, sampling_rate: int) -> Array:
    """`[MEL_BINS, bins]`: Slaney's triangular filters (spec/audio.md §2)."""
    top = 15 + 27 * np.log(sampling_rate / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, MEL_BINS + 2)
    hertz = np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
    low, centre, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    frequencies = np.linspace(0, sampling_rate / 2, bins)
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    filters: Array = np.maximum(np.minimum(rising, falling), 0) * 2 / (high - low)
    return filters
