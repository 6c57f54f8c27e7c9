"""Log-mel front end of the audio VAE, as plain graph operators (spec/audio.md §2).

The short-time Fourier transform is one strided convolution with computed kernels, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ltx2rt.engine import F64

#: Floor before the natural logarithm (spec/audio.md §2, step 4).
LOG_FLOOR = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class MelConfig:
    """The front end: rates in Hz, lengths in samples; bands reach from 0 to half the rate."""

    sampling_rate: int = 16000
    n_fft: int = 1024
    hop_length: int = 160
    mel_bins: int = 64


def mel_points(sampling_rate: int, mel_bins: int) -> F64:
    """Band edges in Hz, `[mel_bins + 2]`, equally spaced on Slaney's scale up to half the rate."""
    step = np.log(6.4) / 27.0
    top = sampling_rate / 2.0
    mel_top = 3.0 * top / 200.0 if top < 1000.0 else 15.0 + np.log(top / 1000.0) / step
    mels = np.linspace(0.0, mel_top, mel_bins + 2)
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(step * (mels - 15.0)))


def mel_filterbank(config: MelConfig) -> F64:
    """Triangular filters with Slaney area normalisation, `[n_fft // 2 + 1, mel_bins]`."""
    edges = mel_points(config.sampling_rate, config.mel_bins)
    frequencies = np.linspace(0.0, config.sampling_rate / 2.0, config.n_fft // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)


def stft_kernels(n_fft: int) -> F64:
    """Hann-windowed cosine rows, then negated sine rows: `[2 * (n_fft // 2 + 1), 1, n_fft]`."""
    n = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * n / n_fft)
    phase = 2.0 * np.pi * (np.arange(n_fft // 2 + 1)[:, None] * n % n_fft) / n_fft
    return np.concatenate([window * np.cos(phase), -window * np.sin(phase)])[:, None, :]


def constant(values: NDArray[np.generic]) -> torch.Tensor:
    """A graph constant: lives on the CPU also while modules are built on the meta device."""
    kind = np.float32 if np.issubdtype(values.dtype, np.floating) else np.int64
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kind))


class MelFrontEnd(nn.Module):
    """Waveform `[B, C, N]` -> natural-log mel `[B, C, N // hop + 1, mel_bins]`.

    N must be greater than `n_fft // 2` (reflection at both ends).
    """

    kernels: torch.Tensor
    filterbank: torch.Tensor
    head: torch.Tensor
    tail: torch.Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        half = config.n_fft // 2
        self.register_buffer("kernels", constant(stft_kernels(config.n_fft)), persistent=False)
        self.register_buffer("filterbank", constant(mel_filterbank(config)), persistent=False)
        self.register_buffer("head", constant(np.arange(half, 0, -1)), persistent=False)
        self.register_buffer("tail", constant(-2 - np.arange(half)), persistent=False)

    def extra_repr(self) -> str:
        return repr(self.config)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        channels, num_samples = waveform.shape[1], waveform.shape[2]
        x = waveform.float().reshape(-1, 1, num_samples)
        # Reflection as two gathers: F.pad(mode="reflect") would put a guard on the symbolic length.
        head, tail = x.index_select(2, self.head), x.index_select(2, self.tail + num_samples)
        x = torch.cat([head, x, tail], dim=2)
        magnitude = stft_magnitude(x, self.kernels, self.config.hop_length)
        mel = log_floor(magnitude.transpose(1, 2) @ self.filterbank)
        return mel.reshape(-1, channels, mel.shape[1], self.config.mel_bins)


def stft_magnitude(x: torch.Tensor, kernels: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Magnitudes `[B, F, T]` of padded signals `[B, 1, N]`; `kernels`: F real, F imaginary rows."""
    real, imaginary = functional.conv1d(x, kernels, stride=hop_length).chunk(2, dim=1)
    return torch.sqrt(real * real + imaginary * imaginary)


def log_floor(mel: torch.Tensor) -> torch.Tensor:
    """`ln(max(mel, 1e-5))`."""
    return torch.log(torch.clamp(mel, min=LOG_FLOOR))
