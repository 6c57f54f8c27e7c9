"""Audio VAE: log-mel spectrograms or waveforms to latents and back (spec/audio.md §2 to §4).

2-D convolutions over `[B, C, time, frequency]`, causal in time. State-dict names are the official
ones without `audio_vae.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ltx2rt.engine import TensorSpec
from ltx2rt.names import AUDIO_DECODER, AUDIO_ENCODER
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.audio_config import refuse_unused
from ltx2rt_export.modules.audio_vae_config import AudioVaeConfig
from ltx2rt_export.modules.mel import MelFrontEnd
from ltx2rt_export.modules.mel_config import MelConfig
from ltx2rt_export.modules.meta import match_weights, on_meta

#: Epsilon of the pixel norm; the video VAE has 1e-8 (spec/audio.md §4.1).
PIXEL_NORM_EPS = 1e-6


class CausalConv2d(nn.Module):
    """Convolution that sees no later time step: zeros before the first one, `same` in frequency."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.pad = kernel_size - 1
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pad:
            x = functional.pad(x, (self.pad // 2, self.pad // 2, self.pad, 0))
        result: torch.Tensor = self.conv(x)
        return result


def pixel_norm(x: torch.Tensor) -> torch.Tensor:
    """RMS norm over channels without parameters, computed in float32."""
    wide = x.float()
    mean_square = (wide * wide).mean(dim=1, keepdim=True)
    return (wide / torch.sqrt(mean_square + PIXEL_NORM_EPS)).to(x.dtype)


class ResBlock(nn.Module):
    """Two pixel-normed convolutions with a residual; `nin_shortcut` when the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = CausalConv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(pixel_norm(x)))
        h = self.conv2(functional.silu(pixel_norm(h)))
        result: torch.Tensor = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
        return result


class AttentionBlock(nn.Module):
    """Single-head attention over all time and frequency positions (no released model has it)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)
        self.scale = channels**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = pixel_norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        h = torch.softmax((q * self.scale) @ k.transpose(1, 2), dim=-1) @ v
        h = h.transpose(1, 2).reshape(-1, x.shape[1], x.shape[2], x.shape[3])
        result: torch.Tensor = x + self.proj_out(h)
        return result


class Middle(nn.Module):
    """Residual block, optional attention, residual block."""

    def __init__(self, channels: int, *, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        if attention:
            self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block_1(x)
        result: torch.Tensor = self.block_2(self.attn_1(x) if hasattr(self, "attn_1") else x)
        return result


class Downsample(nn.Module):
    """Halve time and frequency: T -> (T - 1) // 2 + 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(functional.pad(x, (0, 1, 2, 0)))
        return result


class Upsample(nn.Module):
    """Double time and frequency, without the first time step: T -> 2 T - 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x[:, :, 1:]


class Level(nn.Module):
    """Residual blocks of one resolution, then its resampler if it has one."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, sampler: type[nn.Module] | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        if sampler is not None:
            name = "downsample" if sampler is Downsample else "upsample"
            self.add_module(name, sampler(widths[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Log-mel `[B, 2, M, mel]` -> latent mean `[B, z, (M - 1) // 4 + 1, mel // 4]`, as it is."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.latent_channels = config.latent_channels
        self.conv_in = CausalConv2d(config.audio_channels, config.stem_channels)
        self.down = nn.ModuleList()
        width, last = config.stem_channels, len(config.widths) - 1
        for i, out in enumerate(config.widths):
            sampler = Downsample if i < last else None
            self.down.append(Level(width, out, config.num_res_blocks, sampler))
            width = out
        self.mid = Middle(width, attention=config.mid_attention)
        self.conv_out = CausalConv2d(width, 2 * config.latent_channels)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(mel.to(self.conv_in.conv.weight.dtype))
        for level in self.down:
            x = level(x)
        x = self.conv_out(functional.silu(pixel_norm(self.mid(x))))
        result: torch.Tensor = x[:, : self.latent_channels]
        return result


class Decoder(nn.Module):
    """Latent `[B, z, L, mel // 4]`, not normalised -> log-mel `[B, 2, 4 L - 3, mel]`."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.conv_in = CausalConv2d(config.latent_channels, width)
        self.mid = Middle(width, attention=config.mid_attention)
        levels: list[nn.Module] = []
        for i, out in reversed(list(enumerate(config.widths))):
            levels.append(Level(width, out, config.num_res_blocks + 1, Upsample if i else None))
            width = out
        self.up = nn.ModuleList(reversed(levels))
        self.conv_out = CausalConv2d(width, config.audio_channels)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(latent.to(self.conv_in.conv.weight.dtype)))
        for level in reversed(self.up):
            x = level(x)
        result: torch.Tensor = self.conv_out(functional.silu(pixel_norm(x)))
        return result


class LatentStatistics(nn.Module):
    """Mean and standard deviation of every latent feature, index `channel * bins + bin`."""

    def __init__(self, latent_channels: int, bins: int) -> None:
        super().__init__()
        self.size = (1, latent_channels, 1, bins)
        self.register_buffer("mean-of-means", torch.zeros(latent_channels * bins))
        self.register_buffer("std-of-means", torch.ones(latent_channels * bins))

    def _get(self, name: str) -> torch.Tensor:
        result: torch.Tensor = getattr(self, name).float().reshape(self.size)
        return result

    def normalize(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent.float() - self._get("mean-of-means")) / self._get("std-of-means")

    def un_normalize(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.float() * self._get("std-of-means") + self._get("mean-of-means")


class AudioMelEncoder(nn.Module):
    """Log-mel to normalised latent."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.per_channel_statistics = LatentStatistics(config.latent_channels, config.latent_bins)

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.per_channel_statistics.normalize(self.encoder(mel)),)


class AudioEncoder(AudioMelEncoder):
    """Waveform to normalised latent."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__(config)
        self.mel = MelFrontEnd(config.mel)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor]:
        return super().forward(self.mel(waveform))


class AudioDecoder(nn.Module):
    """Normalised latent to log-mel."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.per_channel_statistics = LatentStatistics(config.latent_channels, config.latent_bins)

    def forward(self, audio_latent: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.decoder(self.per_channel_statistics.un_normalize(audio_latent)).float(),)


class _MelOnly(nn.Module):
    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.mel = MelFrontEnd(config)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.mel(waveform),)


def audio_encoder(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """Component `audio_encoder`: `waveform` `[B, 2, N]` -> `audio_latent` `[B, z, Ta, bins]`.

    The waveform is float32 in [-1, 1] at `options["sampling_rate"]`, N greater than half of
    `options["n_fft"]`. The latent is normalised.

    Args:
        config: the `audio_vae` object of the checkpoint's metadata; may be empty.
        tensors: the checkpoint's tensors whose names start with `audio_vae.`, without it.

    Raises:
        CheckpointError: tensors are missing or have other shapes.
        UnsupportedError: the configuration or the tensors belong to another model.
    """
    parsed = AudioVaeConfig.from_checkpoint(config, tensors, "encoder")
    waveform = TensorSpec("waveform", "float32", ("B", parsed.audio_channels, "N"))
    module = on_meta(lambda: AudioEncoder(parsed))
    return _component(AUDIO_ENCODER, parsed, tensors, module, waveform, {"B": 2, "N": 4321})


def audio_mel_encoder(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """Component `audio_mel_encoder`: `audio_encoder` from log-mel `mel` `[B, 2, M, mel_bins]`."""
    parsed = AudioVaeConfig.from_checkpoint(config, tensors, "encoder")
    mel = TensorSpec("mel", "float32", ("B", parsed.audio_channels, "M", parsed.mel.mel_bins))
    module = on_meta(lambda: AudioMelEncoder(parsed))
    return _component("audio_mel_encoder", parsed, tensors, module, mel, {"B": 2, "M": 27})


def audio_decoder(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """Component `audio_decoder`: normalised `audio_latent` `[B, z, Ta, bins]` -> log-mel `mel`.

    `mel` is `[B, 2, M, mel_bins]` with `M = 4 Ta - 3`. Arguments and errors as in `audio_encoder`.
    """
    parsed = AudioVaeConfig.from_checkpoint(config, tensors, "decoder")
    module = on_meta(lambda: AudioDecoder(parsed))
    return _component(
        AUDIO_DECODER, parsed, tensors, module, _latent_spec(parsed), {"B": 2, "Ta": 5}
    )


def mel_front_end(config: MelConfig | None = None, audio_channels: int = 2) -> Component:
    """Component `mel_front_end`: `waveform` `[B, C, N]` -> log-mel `mel` `[B, C, M, mel_bins]`."""
    parsed = config or MelConfig()
    return Component(
        name="mel_front_end",
        module=on_meta(lambda: _MelOnly(parsed)),
        inputs=(TensorSpec("waveform", "float32", ("B", audio_channels, "N")),),
        outputs=(TensorSpec("mel", "float32", ("B", audio_channels, "M", parsed.mel_bins)),),
        weights={},
        trace={"B": 2, "N": 4321},
        options={"sampling_rate": parsed.sampling_rate, "n_fft": parsed.n_fft},
    )


def _latent_spec(config: AudioVaeConfig) -> TensorSpec:
    shape = ("B", config.latent_channels, "Ta", config.latent_bins)
    return TensorSpec("audio_latent", "float32", shape)


def _component(
    name: str,
    config: AudioVaeConfig,
    tensors: TensorIndex,
    module: nn.Module,
    source: TensorSpec,
    trace: Mapping[str, int],
) -> Component:
    side = "decoder" if name == AUDIO_DECODER else "encoder"
    refuse_unused(module.state_dict(), tensors, f"audio VAE {side}", prefix=f"{side}.")
    mel_shape = ("B", config.audio_channels, "M", config.mel.mel_bins)
    decoded = TensorSpec("mel", "float32", mel_shape)
    return Component(
        name=name,
        module=module,
        inputs=(source,),
        outputs=(decoded if side == "decoder" else _latent_spec(config),),
        weights=match_weights(module, tensors, f"audio VAE {side}"),
        trace=trace,
        options={
            "float32_inputs": [source.name],  # the module rounds what follows the statistics
            "sampling_rate": config.mel.sampling_rate,
            "n_fft": config.mel.n_fft,
            "mel_hop_length": config.mel.hop_length,
            "mel_bins": config.mel.mel_bins,
            "latent_channels": config.latent_channels,
            "latent_bins": config.latent_bins,
            "mel_frames_per_latent": config.downsample_factor,
        },
    )
