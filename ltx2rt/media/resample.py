"""Sampling-rate conversion with a windowed sinc (spec/audio.md §2.2), in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32
from ltx2rt.errors import OptionError, ShapeError

LOWPASS_WIDTH = 6
ROLLOFF = 0.99

#: outputs computed at once: bounds the temporary windows to tens of megabytes
CHUNK = 1 << 16


def resampling_taps(up: int, down: int) -> tuple[F32, NDArray[np.int64]]:
    """Filter of every output phase, its zero taps left out.

    Output `k` is `sum_j taps[p, j] * x[down * (k // up) + first[p] + j]` with `p = k % up`; samples
    outside the signal are zero.

    Times are float32 in the order of the official call, so that its rounding is ours: up to 1.5e-5
    for common rates, more where the rates have a small common divisor.

    Args:
        up, down: output and input rate divided by their greatest common divisor.

    Returns:
        taps `[up, width]` and first sample of each phase `[up]`.
    """
    base = ROLLOFF * min(up, down)
    reach = math.ceil(LOWPASS_WIDTH * down / base)
    phase = np.arange(up, dtype=np.int64)
    first = phase * down // up - reach
    sample = first[:, None] + np.arange(2 * reach + 2)
    turn = np.float32(math.pi)
    time = (-phase).astype(np.float32)[:, None] / np.float32(up)
    time = (time + sample.astype(np.float32) / np.float32(down)) * np.float32(base)
    time = np.clip(time, -LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = np.cos(time * turn / np.float32(LOWPASS_WIDTH) / np.float32(2)) ** 2
    angle = time * turn
    sinc = np.divide(np.sin(angle), angle, out=np.ones_like(angle), where=angle != 0)
    return sinc * (window * np.float32(base / down)), first


def resample(waveform: F32, rate_in: int, rate_out: int) -> F32:
    """Convert a waveform to another sampling rate.

    Args:
        waveform: `[C, N]` float32.
        rate_in, rate_out: rates in Hz.

    Returns:
        `[C, ceil(N * rate_out / rate_in)]` float32; `waveform` itself when the rates are equal.

    Raises:
        OptionError: a rate is not positive.
        ShapeError: `waveform` is not two-dimensional.
    """
    _check_rates(rate_in, rate_out)
    if waveform.ndim != 2:
        raise ShapeError(
            f"the waveform has shape {list(waveform.shape)}; [channels, samples] is needed."
        )
    if rate_in == rate_out:
        return waveform
    result = np.empty((len(waveform), -(-rate_out * waveform.shape[1] // rate_in)), np.float32)
    position = 0
    for part in resampled_pieces([waveform], rate_in, rate_out):
        result[:, position : position + part.shape[1]] = part
        position += part.shape[1]
    return result


def resampled_pieces(pieces: Iterable[F32], rate_in: int, rate_out: int) -> Iterator[F32]:
    """As `resample`, of a waveform that comes in pieces: the same samples, to the bit. No more of
    it is held than a piece and what `CHUNK` outputs are made of.

    Args:
        pieces: `[C, n]` float32 each.
        rate_in, rate_out: rates in Hz.

    Yields:
        `[C, n]` float32; the pieces themselves when the rates are equal.

    Raises:
        OptionError: a rate is not positive.
    """
    _check_rates(rate_in, rate_out)
    if rate_in == rate_out:
        yield from pieces
        return
    divisor = math.gcd(rate_in, rate_out)
    up, down = rate_out // divisor, rate_in // divisor
    taps, first = resampling_taps(up, down)
    width, before = taps.shape[1], int(-first.min())
    held: F32 | None = None  # input from sample `dropped - before` on; zeros before the first
    count = dropped = done = 0
    for piece in chain(pieces, [None]):
        if piece is not None:
            count += piece.shape[1]
            lead = np.zeros((len(piece), before), np.float32) if held is None else held
            held = np.concatenate([lead, piece], axis=1, dtype=np.float32)
        elif held is not None:  # the end
            held = np.pad(held, ((0, 0), (0, down + width)))
        length = -(-up * count // down)
        while held is not None and done < length:
            output = np.arange(done, min(done + CHUNK, length), dtype=np.int64)
            phase = output % up
            start = output // up * down + first[phase] + (before - dropped)
            is_whole = piece is None or len(output) == CHUNK
            if not is_whole or start[-1] + width > held.shape[1]:
                break  # more has to come
            windows = np.lib.stride_tricks.sliding_window_view(held, width, axis=1)
            yield np.einsum("ckj,kj->ck", windows[:, start], taps[phase])
            done += len(output)
            held, dropped = held[:, start[-1] :], dropped + int(start[-1])


def _check_rates(rate_in: int, rate_out: int) -> None:
    if rate_in < 1 or rate_out < 1:
        raise OptionError(
            f"sampling rates {rate_in} and {rate_out} Hz were given; both must be at least 1."
        )
