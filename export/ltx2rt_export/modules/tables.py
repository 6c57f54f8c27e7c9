"""Constants of graphs that are computed instead of stored: numpy alone, the same on every way.

A module that holds one says which (`meta.add_table`); a shipped graph names the function and its
arguments in place of the values (`shipped.tables_in`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx2rt.engine import F64, Array
from ltx2rt.latents.rope import RopeType, index_positions, rope_tables

#: every prompt is padded to this length; rotary tables end here
MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Table:
    """A constant: a function of this module by name, and its arguments (JSON values)."""

    function: str
    arguments: Mapping[str, Any]

    def values(self) -> Array:
        """Compute it, float32."""
        made = FUNCTIONS[self.function](**self.arguments)
        return np.ascontiguousarray(made, dtype=np.float32)


def mel_points(sampling_rate: int, mel_bins: int) -> F64:
    """Band edges in Hz, `[mel_bins + 2]`, equally spaced on Slaney's scale up to half the rate."""
    step = np.log(6.4) / 27.0
    top = sampling_rate / 2.0
    mel_top = 3.0 * top / 200.0 if top < 1000.0 else 15.0 + np.log(top / 1000.0) / step
    mels = np.linspace(0.0, mel_top, mel_bins + 2)
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(step * (mels - 15.0)))


def mel_filterbank(sampling_rate: int, n_fft: int, hop_length: int, mel_bins: int) -> F64:
    """Triangular filters with Slaney area normalisation, `[n_fft // 2 + 1, mel_bins]`.

    Arguments: the fields of `MelConfig`.
    """
    edges = mel_points(sampling_rate, mel_bins)
    frequencies = np.linspace(0.0, sampling_rate / 2.0, n_fft // 2 + 1)[:, None]
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


def connector_rope(
    part: int,
    width: int,
    heads: int,
    max_pos: Sequence[float],
    rope_type: RopeType,
    precision: str,
) -> Array:
    """Cosines (`part` 0) or sines (1) of a text connector; see `rope_tables`."""
    return rope_tables(
        index_positions(MAX_TOKENS),
        width=width,
        heads=heads,
        max_pos=max_pos,
        rope_type=rope_type,
        precision=precision,
    )[part]


def rotary(part: int, frequencies: Sequence[float], scaling: float) -> Array:
    """Cosines (`part` 0) or sines (1) of Gemma, `[1, MAX_TOKENS, 2 * frequencies]`: float32 angles,
    each twice.
    """
    angles = np.arange(MAX_TOKENS, dtype=np.float32)[:, None] * np.asarray(frequencies, np.float32)
    values = (np.cos if part == 0 else np.sin)(angles) * np.float32(scaling)
    return np.concatenate([values, values], axis=1)[None]


#: what a `Table` may name
FUNCTIONS: dict[str, Callable[..., Array]] = {
    f.__name__: f for f in (stft_kernels, mel_filterbank, connector_rope, rotary)
}
