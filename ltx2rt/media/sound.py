"""The sound of media files, on the clock of their picture (spec/conditioning.md §5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import MediaError
from ltx2rt.media import pyav as av
from ltx2rt.media.clock import start_of
from ltx2rt.media.container import audio_stream, reading

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

# Integer sample formats: full scale and the value of silence. Upstream leaves the 128 of unsigned
# bytes in, which offsets the whole wave by +1; we take it out.
_INTEGER_SCALES = {"u8": (128.0, 128.0), "s16": (32768.0, 0.0), "s32": (2147483648.0, 0.0)}
_FLOATS = ("flt", "dbl")

# Codecs with overlapping blocks (AAC, Opus, MP3) decode the first block after a seek wrongly;
# start a few blocks early and drop them. Upstream seeks to the start itself.
_PREROLL_S = 0.1
# What time stamps in milliseconds, or of a codec's own delay, may be off without a gap.
_JITTER_S = 0.02
_LONGEST_GAP_S = 3600  # without sound between two blocks
#: samples of a piece, or a few more
PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """Facts about the first audio stream of a file.

    Attributes:
        sampling_rate: in Hz.
        channels: how many.
        layout: which, in libav's words: `stereo`, `5.1`, ...
    """

    sampling_rate: int
    channels: int
    layout: str


def probe_audio(path: str | Path) -> AudioInfo:
    """Read the facts of a file's sound.

    Raises:
        MediaError: missing, not a media file, or without an audio stream.
    """
    with reading(path, "audio") as container:
        context = audio_stream(container, path).codec_context
        return AudioInfo(
            sampling_rate=context.sample_rate,
            channels=context.channels,
            layout=context.layout.name,
        )


def read_audio(
    path: str | Path, start_s: float = 0.0, max_duration_s: float | None = None
) -> tuple[F32, int]:
    """Decode the first audio stream, or a window of it, at its own rate and channel count.

    A window of a lossy stream (MP3, AAC) is decoded from 0.1 s before its first sample on and cut:
    the first blocks after a seek lack those that they overlap, so a window that starts at its own
    first block, as with the official reader, begins with faulty sound. What comes out here is what
    the whole file decodes to.

    Args:
        path: a sound or video file; `probe_video(...).has_audio` tells whether a video has sound.
        start_s: first second wanted, from the first frame of the picture on, or in a file without
            one from its first sample on.
        max_duration_s: cut to round(max_duration_s * rate) samples; None for the rest.

    Returns:
        `[channels, N]` float32 (integer formats scaled to +-1) and the sampling rate in Hz. Where
        the sound begins late or has gaps there is silence. AAC can end with up to one frame (1024
        samples) of encoder padding.

    Raises:
        MediaError: missing, damaged, without an audio stream, or it ends before the window.
    """
    wave, rate = _read(path, start_s, max_duration_s)
    if not wave.size:
        raise _nothing_heard(path, start_s)
    return np.ascontiguousarray(wave), rate


def stereo_pieces(path: str | Path) -> Iterator[F32]:
    """What `mixed_down` makes of `read_audio(path)`, in pieces of about `PIECE` samples: no more of
    it is held.

    Yields:
        `[2, n]` float32.

    Raises:
        MediaError: see `read_audio`.
    """
    zero = start_of(path)
    is_silent = True
    with reading(path, "audio") as container:
        stream = audio_stream(container, path)
        rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout.name
        for piece in _gathered(_parts(container, stream, path, zero, 0, None)):
            is_silent = False
            yield mixed_down(piece, layout, rate)
    if is_silent:
        raise _nothing_heard(path, 0.0)


def _gathered(parts: Iterator[F32]) -> Iterator[F32]:
    """Parts put together until they are a piece."""
    held: list[F32] = []
    for part in parts:
        held.append(part)
        if sum(h.shape[1] for h in held) >= PIECE:
            yield np.concatenate(held, axis=1)
            held = []
    if any(h.size for h in held):
        yield np.concatenate(held, axis=1)


def silence(channels: int, length: int) -> Iterator[F32]:
    """Silence in pieces."""
    for begin in range(0, length, PIECE):
        yield np.zeros((channels, min(PIECE, length - begin)), np.float32)


def _nothing_heard(path: str | Path, start_s: float) -> MediaError:
    return MediaError(f"'{path}' has no sound from {start_s} seconds on.")


def read_padded_audio(path: str | Path, start_s: float, seconds: float) -> tuple[F32, int]:
    """As `read_audio`, and silence where it has ended: `[channels, round(seconds * rate)]`. What
    comes before is decoded and let go, so that the samples are those of the whole to the bit.
    """
    wave, rate = _read(path, start_s, seconds, searched=False)
    return np.pad(wave, ((0, 0), (0, round(seconds * rate) - wave.shape[1]))), rate


def _read(
    path: str | Path, start_s: float, max_duration_s: float | None, *, searched: bool = True
) -> tuple[F32, int]:
    zero = start_of(path)
    with reading(path, "audio") as container:
        stream = audio_stream(container, path)
        rate = stream.codec_context.sample_rate
        first = round(start_s * rate)
        length = None if max_duration_s is None else round(max_duration_s * rate)
        if start_s <= 0 or not searched or _seek(container, stream, zero + start_s - _PREROLL_S):
            wave = _window(container, stream, path, zero, first, length)
        else:  # a failed search leaves nothing to read
            wave = read_audio(path)[0][:, first:][:, :length]
    return wave, rate


def _window(
    container: InputContainer,
    stream: AudioStream,
    path: str | Path,
    zero: float,
    first: int,
    length: int | None,
) -> F32:
    """At most `length` samples from sample `first` on; silence where there is no sound between."""
    parts = [np.zeros((stream.codec_context.channels, 0), np.float32)]
    parts += _parts(container, stream, path, zero, first, length)
    return np.concatenate(parts, axis=1)[:, :length]


def _parts(
    container: InputContainer,
    stream: AudioStream,
    path: str | Path,
    zero: float,
    first: int,
    length: int | None,
) -> Iterator[F32]:
    """`_window` as it is decoded; the last part may go on beyond it."""
    position = first  # of the next sample wanted, from time 0 on
    for at, block in _placed(container, stream, path, zero):
        if at + block.shape[1] <= position:  # an empty part of it would keep all of it
            continue
        past_end = length is not None and at >= first + length
        start = first + length if past_end and length is not None else at
        if start - position > _LONGEST_GAP_S * stream.codec_context.sample_rate:
            raise MediaError(
                f"cannot read audio from '{path}': its time stamps leave a gap of "
                f"{(start - position) / stream.codec_context.sample_rate:.0f} s; write it again."
            )
        yield from silence(stream.codec_context.channels, start - position)
        position = max(position, start)
        if past_end:
            break
        yield block[:, position - at :]
        position = at + block.shape[1]


def mixed_down(wave: F32, layout: str, rate: int) -> F32:
    """Sound of any channels as `[2, N]`, by libav's standard matrix (ITU-R BS.775: centre and
    surround at -3 dB, no low-frequency channel); mono is doubled, stereo left alone.
    """
    if wave.shape[0] == 2:
        return wave
    if wave.shape[0] == 1:
        return np.repeat(wave, 2, axis=0)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout=layout)
    frame.sample_rate = rate
    mixer = av.AudioResampler(format="fltp", layout="stereo")
    mixed = [f.to_ndarray() for f in (*mixer.resample(frame), *mixer.resample(None))]
    return np.concatenate(mixed, axis=1).astype(np.float32, copy=False)


def _seek(container: InputContainer, stream: AudioStream, time_s: float) -> bool:
    """Go to the block at or before `time_s`; False (and nothing more to read) if impossible."""
    try:
        container.seek(int(max(0.0, time_s) / (stream.time_base or 1)), stream=stream)
    except av.FFmpegError:
        return False
    return True


def _placed(
    container: InputContainer, stream: AudioStream, path: str | Path, zero: float
) -> Iterator[tuple[int, F32]]:
    """Decoded blocks and where they belong, in samples from time 0 on: one after the other as long
    as the time stamps say no more than that.
    """
    rate = stream.codec_context.sample_rate
    following: int | None = None
    for frame in container.decode(stream):
        block = _to_float(frame, path)
        if frame.time is not None:
            stamped = round((frame.time - zero) * rate)
            if following is None or abs(stamped - following) > _JITTER_S * rate:
                following = stamped
        following = following or 0
        yield following, block
        following += block.shape[1]


def _to_float(frame: AudioFrame, path: str | Path) -> F32:
    """Bring one decoded block to `[channels, N]` float32."""
    name = frame.format.name.removesuffix("p")
    if name not in _INTEGER_SCALES and name not in _FLOATS:  # s64: numpy's conversion lacks it
        (frame,) = av.AudioResampler(format="dbl").resample(frame)
        name = "dbl"
    samples: Array = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if name in _FLOATS:
        return samples.astype(np.float32)
    scale, silence = _INTEGER_SCALES[name]
    return ((samples.astype(np.float64) - silence) / scale).astype(np.float32)
