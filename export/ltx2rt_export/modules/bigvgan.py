"""Parts of the BigVGAN-v2 vocoder (spec/audio.md §6), all in float32.

Anti-aliased periodic activation, causal log-mel and the resampler of the bandwidth extension.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ltx2rt.engine import F64
from ltx2rt_export.modules.mel import log_floor, stft_magnitude
from ltx2rt_export.modules.meta import constant
from ltx2rt_export.modules.snake import FILTER_TAPS, anti_aliased_snake, snake, upsample


class Filter(nn.Module):
    """Holds one stored filter, `filter` `[1, 1, 12]`."""

    filter: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.zeros(1, 1, FILTER_TAPS))


class LowPass(nn.Module):
    """Holds the filter of the downsampler, `lowpass.filter`."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = Filter()


class Snake(nn.Module):
    """Holds alpha and beta, `[C]` each. Without beta, alpha serves as both."""

    def __init__(self, channels: int, *, beta: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        if beta:
            self.beta = nn.Parameter(torch.zeros(channels))

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Alpha and beta."""
        return self.alpha, self.beta if hasattr(self, "beta") else self.alpha

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """`[B, C, L]` -> same."""
        return snake(v, *self.values())


class AntiAliasedSnake(nn.Module):
    """Snake at twice the sampling rate, `[B, C, L]` -> same: holds the weights of the operator."""

    def __init__(self, channels: int, *, beta: bool) -> None:
        super().__init__()
        self.act = Snake(channels, beta=beta)
        self.upsample = Filter()
        self.downsample = LowPass()

    def up(self, x: torch.Tensor) -> torch.Tensor:
        """The first step alone, `[B, C, L]` -> `[B, C, 2 L]`."""
        return upsample(x, self.upsample.filter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filters = self.upsample.filter, self.downsample.lowpass.filter
        result: torch.Tensor = anti_aliased_snake(x, *self.act.values(), *filters)
        return result


class StftBasis(nn.Module):
    """Holds the stored kernels; the inverse basis of checkpoints takes no part."""

    forward_basis: torch.Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.register_buffer("forward_basis", torch.zeros(2 * (n_fft // 2 + 1), 1, n_fft))


class CausalMel(nn.Module):
    """Waveform `[B, C, N]` -> log-mel `[B, C, mel, N / hop]`, with the checkpoint's bases.

    N must be a multiple of the hop.
    """

    mel_basis: torch.Tensor

    def __init__(self, n_fft: int, hop_length: int, mel_bins: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.mel_bins = n_fft, hop_length, mel_bins
        self.stft_fn = StftBasis(n_fft)
        self.register_buffer("mel_basis", torch.zeros(mel_bins, n_fft // 2 + 1))

    def extra_repr(self) -> str:
        return f"n_fft={self.n_fft}, hop_length={self.hop_length}"

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        channels = waveform.shape[1]
        x = waveform.reshape(-1, 1, waveform.shape[2])
        x = functional.pad(x, (self.n_fft - self.hop_length, 0))
        magnitude = stft_magnitude(x, self.stft_fn.forward_basis, self.hop_length)
        mel = log_floor(self.mel_basis @ magnitude)
        return mel.reshape(-1, channels, self.mel_bins, mel.shape[2])


#: Half width in input samples, low-pass width and roll-off of the resampler (spec/audio.md §6.4).
RESAMPLER_WIDTH = 7
LOWPASS_WIDTH = 6
ROLLOFF = 0.99


def resampler_filter(ratio: int) -> F64:
    """Windowed sinc for an integer factor, `[14 * ratio + 1]`; its sum is not normalised."""
    time = (np.arange(2 * RESAMPLER_WIDTH * ratio + 1) / ratio - RESAMPLER_WIDTH) * ROLLOFF
    window = np.cos(np.pi * np.clip(time, -LOWPASS_WIDTH, LOWPASS_WIDTH) / LOWPASS_WIDTH / 2.0) ** 2
    taps: F64 = np.sinc(time) * window * ROLLOFF / ratio
    return taps


class Resampler(nn.Module):
    """Upsample by an integer factor with repeated edges: `[B, C, N]` -> `[B, C, ratio * N]`."""

    kernels: torch.Tensor

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        taps = resampler_filter(ratio)
        kernels = np.zeros((ratio, 1, 2 * RESAMPLER_WIDTH + 1))
        for phase in range(ratio):
            values = ratio * taps[phase::ratio]
            kernels[phase, 0, 2 * RESAMPLER_WIDTH + 1 - len(values) :] = values[::-1]
        self.register_buffer("kernels", constant(kernels), persistent=False)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        pad = (RESAMPLER_WIDTH, RESAMPLER_WIDTH)
        x = functional.pad(x.reshape(-1, 1, x.shape[2]), pad, mode="replicate")
        x = functional.conv1d(x, self.kernels).transpose(1, 2).flatten(1)
        return x.reshape(-1, channels, x.shape[1])
