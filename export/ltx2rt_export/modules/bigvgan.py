"""Parts of the BigVGAN-v2 vocoder: anti-aliased periodic activation, causal log-mel, resampler (spec/audio.md section 6).

Everything is float32. Resampling filters run as their polyphase equivalents: the sample phases are channels, so neither
zero-stuffing nor interleaving is computed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ltx2rt_export.modules.mel import constant, log_floor, stft_magnitude

#: Taps of the stored low-pass filters, and reach of their polyphase form to either side.
FILTER_TAPS = 12
REACH = 3

#: Added to exp(beta) before the division (spec/audio.md section 6.1).
SNAKE_EPS = 1e-9


def kaiser_sinc_filter(taps: int = FILTER_TAPS) -> NDArray[np.float64]:
    """The low-pass filter that checkpoints store, `[taps]`: cutoff 0.25, half width 0.3, sum 1.

    Stored values are rounded to bfloat16 and always win; this is for writing checkpoints.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4.0 * 0.3 + 7.95
    window = np.kaiser(taps, 0.1102 * (attenuation - 8.7))
    time = np.arange(-(taps // 2), taps // 2) + 0.5
    values = 0.5 * window * np.sinc(0.5 * time)
    return values / values.sum()


def _upsampling_phases() -> NDArray[np.float64]:
    """`[12, 2 * 7]`: filter -> kernels of even and odd outputs over `x[n - 3 .. n + 3]`, gain 2 included."""
    choose = np.zeros((FILTER_TAPS, 2, 2 * REACH + 1))
    for k in range(FILTER_TAPS // 2):
        choose[11 - 2 * k, 0, k] = 2.0
        choose[10 - 2 * k, 1, k + 1] = 2.0
    return choose.reshape(FILTER_TAPS, -1)


def _downsampling_phases() -> NDArray[np.float64]:
    """`[12, 2 * 7]`: filter -> kernel over even samples and kernel over odd samples `n - 3 .. n + 3`."""
    choose = np.zeros((FILTER_TAPS, 2, 2 * REACH + 1))
    for t in range(2 * REACH + 1):
        if t >= 1:
            choose[2 * t - 1, 0, t] = 1.0
        if t < FILTER_TAPS // 2:
            choose[2 * t, 1, t] = 1.0
    return choose.reshape(FILTER_TAPS, -1)


class Filter(nn.Module):
    """Holds one stored filter, `filter` `[1, 1, 12]`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.zeros(1, 1, FILTER_TAPS))


class LowPass(nn.Module):
    """Holds the filter of the downsampler, `lowpass.filter`."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = Filter()


class Snake(nn.Module):
    """`v + sin(v exp(alpha))^2 / (exp(beta) + 1e-9)` with a value per channel; without beta, alpha serves as both."""

    def __init__(self, channels: int, *, beta: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        if beta:
            self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """`[B, C, P, L]`, P phases of the signal."""
        frequency = torch.exp(self.alpha)
        magnitude = torch.exp(self.beta) if hasattr(self, "beta") else frequency
        wave = torch.sin(v * frequency[:, None, None])
        return v + (1.0 / (magnitude + SNAKE_EPS))[:, None, None] * (wave * wave)


class AntiAliasedSnake(nn.Module):
    """Snake at twice the sampling rate: up, activate, down (spec/audio.md section 6.1). `[B, C, L]` -> same."""

    def __init__(self, channels: int, *, beta: bool) -> None:
        super().__init__()
        self.channels = channels
        self.act = Snake(channels, beta=beta)
        self.upsample = Filter()
        self.downsample = LowPass()
        self.register_buffer("up_phases", constant(_upsampling_phases()), persistent=False)
        self.register_buffer("down_phases", constant(_downsampling_phases()), persistent=False)

    def up(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, L]` -> `[B, C, 2, L]`: even and odd samples of the signal at twice the rate."""
        kernel = (self.upsample.filter.reshape(1, -1) @ self.up_phases).reshape(2, 1, -1)
        x = x.reshape(-1, 1, x.shape[2])
        x = functional.conv1d(functional.pad(x, (REACH, REACH), mode="replicate"), kernel)
        return x.reshape(-1, self.channels, 2, x.shape[2])

    def down(self, v: torch.Tensor) -> torch.Tensor:
        """Inverse layout of `up`: `[B, C, 2, L]` -> `[B, C, L]`; the first and last sample are repeated."""
        kernel = self.downsample.lowpass.filter.reshape(1, -1) @ self.down_phases
        v = v.reshape(-1, 2, v.shape[3])
        first, last = v[:, :1, :1].expand(-1, 2, REACH), v[:, 1:, -1:].expand(-1, 2, REACH)
        z = functional.conv1d(torch.cat([first, v, last], dim=2), kernel.reshape(1, 2, -1))
        return z.reshape(-1, self.channels, z.shape[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(x)))


class StftBasis(nn.Module):
    """Holds the stored kernels; the inverse basis of checkpoints takes no part."""

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.register_buffer("forward_basis", torch.zeros(2 * (n_fft // 2 + 1), 1, n_fft))


class CausalMel(nn.Module):
    """Waveform `[B, C, N]`, N a multiple of the hop -> log-mel `[B, C, mel, N / hop]` with the checkpoint's bases."""

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


#: Half width in input samples, low-pass width and roll-off of the resampler (spec/audio.md section 6.4).
RESAMPLER_WIDTH = 7
LOWPASS_WIDTH = 6
ROLLOFF = 0.99


def resampler_filter(ratio: int) -> NDArray[np.float64]:
    """Windowed sinc for an integer factor, `[14 * ratio + 1]`; its sum is not normalised."""
    time = (np.arange(2 * RESAMPLER_WIDTH * ratio + 1) / ratio - RESAMPLER_WIDTH) * ROLLOFF
    window = np.cos(np.pi * np.clip(time, -LOWPASS_WIDTH, LOWPASS_WIDTH) / LOWPASS_WIDTH / 2.0) ** 2
    return np.sinc(time) * window * ROLLOFF / ratio


class Resampler(nn.Module):
    """Upsample by an integer factor with repeated edges: `[B, C, N]` -> `[B, C, ratio * N]`."""

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
