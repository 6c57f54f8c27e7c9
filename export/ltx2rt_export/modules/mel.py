"""Log-mel front end of the audio VAE, as plain graph operators (spec/audio.md §2).

The short-time Fourier transform is one strided convolution with computed kernels, in float32.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ltx2rt_export.modules.mel_config import MelConfig
from ltx2rt_export.modules.meta import add_table, constant
from ltx2rt_export.modules.tables import Table

#: Floor before the natural logarithm (spec/audio.md §2, step 4).
LOG_FLOOR = 1e-5


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
        add_table(self, "kernels", Table("stft_kernels", {"n_fft": config.n_fft}))
        add_table(self, "filterbank", Table("mel_filterbank", asdict(config)))
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
