"""Vocoders: log-mel to stereo waveform.

HiFi-GAN (LTX-2), BigVGAN-v2 with bandwidth extension (LTX-2.3, 2.5). Always float32, whatever the
rest of the model runs in (spec/audio.md §6.5). State-dict names are the official ones
without one leading `vocoder.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ltx2rt.engine import TensorSpec
from ltx2rt.names import VOCODER
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.audio_config import refuse_unused
from ltx2rt_export.modules.bigvgan import AntiAliasedSnake, CausalMel, Resampler
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.vocoder_config import UNUSED_TENSORS, GeneratorConfig, VocoderConfig

#: Slope inside HiFi-GAN; the last activation has the library default (spec/audio.md §5).
SLOPE = 0.1
FINAL_SLOPE = 0.01


class ResBlock(nn.Module):
    """Pairs of dilated and plain convolutions with residuals; `acts1`, `acts2` only in BigVGAN."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], kind: str) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel, 1) for _ in dilations)
        self.snake = kind != "leaky_relu"
        if self.snake:
            beta = kind == "snakebeta"
            self.acts1 = nn.ModuleList(AntiAliasedSnake(channels, beta=beta) for _ in dilations)
            self.acts2 = nn.ModuleList(AntiAliasedSnake(channels, beta=beta) for _ in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            h = self.acts1[i](x) if self.snake else functional.leaky_relu(x, SLOPE)
            h = conv1(h)
            h = self.acts2[i](h) if self.snake else functional.leaky_relu(h, SLOPE)
            x = x + conv2(h)
        return x


def _same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    padding = (kernel - 1) * dilation // 2
    return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=padding)


class Generator(nn.Module):
    """Log-mel features `[B, in_channels, M]` -> waveform `[B, 2, factor * M]`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_pre = nn.Conv1d(config.in_channels, config.initial_channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        width = config.initial_channels
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding))
            width //= 2
            for res_kernel, dilations in zip(config.res_kernels, config.res_dilations, strict=True):
                self.resblocks.append(ResBlock(width, res_kernel, dilations, config.activation))
        if config.activation != "leaky_relu":
            self.act_post = AntiAliasedSnake(width, beta=config.activation == "snakebeta")
        self.conv_post = nn.Conv1d(width, 2, 7, padding=3, bias=config.final_bias)

    def extra_repr(self) -> str:
        return f"final={self.config.final}"

    def generate(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        leaky = self.config.activation == "leaky_relu"
        per_stage = len(self.config.res_kernels)
        x = self.conv_pre(features)
        for i, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, SLOPE) if leaky else x)
            branches = [self.resblocks[per_stage * i + j](x) for j in range(per_stage)]
            total = branches[0]
            for branch in branches[1:]:
                total = total + branch
            x = total / per_stage
        x = self.conv_post(functional.leaky_relu(x, FINAL_SLOPE) if leaky else self.act_post(x))
        if self.config.final == "tanh":
            return torch.tanh(x)
        return torch.clamp(x, -1.0, 1.0) if self.config.final == "clamp" else x


def stack_stereo(mel: torch.Tensor) -> torch.Tensor:
    """Log-mel `[B, 2, mel, M]` -> features `[B, 2 * mel, M]`, channel `stereo * mel_bins + bin`."""
    return mel.float().flatten(1, 2)


class Vocoder(Generator):
    """A single generator: `mel` `[B, 2, M, mel]` -> `waveform` `[B, 2, factor * M]`."""

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.generate(stack_stereo(mel.transpose(2, 3))),)


class BweVocoder(nn.Module):
    """Generator at the low rate, then bandwidth extension: resampled plus generated residual."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        if config.bwe is None:
            raise ValueError("this vocoder has no bandwidth extension")
        bwe = config.bwe
        self.vocoder = Generator(config.generator)
        self.bwe_generator = Generator(bwe.generator)
        self.mel_stft = CausalMel(bwe.n_fft, bwe.hop_length, bwe.mel_bins)
        self.resampler = Resampler(bwe.ratio(config.output_sampling_rate))

    def stages(self, mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Waveform, low-rate waveform, its log-mel `[B, 2, mel, F]`, residual, resampled."""
        low = self.vocoder.generate(stack_stereo(mel.transpose(2, 3)))
        bwe_mel = self.mel_stft(low)
        residual = self.bwe_generator.generate(stack_stereo(bwe_mel))
        skip = self.resampler(low)
        return torch.clamp(residual + skip, -1.0, 1.0), low, bwe_mel, residual, skip

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.stages(mel)[0],)


def vocoder(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """Component `vocoder`: log-mel `mel` `[B, 2, M, mel_bins]` -> `waveform` `[B, 2, N]`.

    `N = options["samples_per_mel_frame"] * M`; `options["precision"]`: it runs in float32 only.

    Args:
        config: the `vocoder` object of the checkpoint's metadata; may be empty.
        tensors: the checkpoint's tensors whose names start with `vocoder.`, without it (once).

    Raises:
        CheckpointError: tensors are missing or have other shapes.
        UnsupportedError: the configuration or the tensors belong to another model.
    """
    parsed = VocoderConfig.from_checkpoint(config, tensors)
    module = on_meta(lambda: BweVocoder(parsed) if parsed.bwe else Vocoder(parsed.generator))
    refuse_unused(module.state_dict(), tensors, VOCODER, unused=UNUSED_TENSORS)
    return Component(
        name=VOCODER,
        module=module,
        inputs=(TensorSpec("mel", "float32", ("B", 2, "M", parsed.mel_bins)),),
        outputs=(TensorSpec("waveform", "float32", ("B", 2, "N")),),
        weights=match_weights(module, tensors, VOCODER),
        trace={"B": 2, "M": 7},
        options={
            "output_sampling_rate": parsed.output_sampling_rate,
            "samples_per_mel_frame": parsed.samples_per_mel_frame,
            "mel_bins": parsed.mel_bins,
            "precision": "float32",
        },
    )
