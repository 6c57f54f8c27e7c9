"""Waveforms: 16-bit samples, length that fits the picture, and sound files.

Preparation (clip, scale, truncate) as in spec/media_io.md §2 and §3.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import Array
from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.media import pyav as av
from ltx2rt.media.files import AUDIO_FORMATS, OutputFile, check_output_path

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

_BLOCK = 65536  # samples per encoder call in files: bounds the copies, no influence on the result


Codec = Literal["aac", "flac", "libmp3lame", "libopus", "pcm_s16le"]
_CODECS: dict[str, Codec] = {
    ".wav": "pcm_s16le",
    ".flac": "flac",
    ".mp3": "libmp3lame",
    ".m4a": "aac",
}


#: channels -> layout that is written
LAYOUTS = {2: "stereo", 6: "5.1", 8: "7.1"}


def check_waveform(waveform: Array, sampling_rate: int) -> None:
    """Refuse anything but a non-empty float waveform of `LAYOUTS` with a positive rate.

    Raises:
        ShapeError: other channels, empty, or not floating point.
        OptionError: the sampling rate is not a positive integer.
    """
    floating = np.issubdtype(waveform.dtype, np.floating)
    channels = waveform.shape[0] if waveform.ndim == 2 else 0
    if channels not in LAYOUTS or not waveform.shape[1] or not floating:
        raise ShapeError(
            f"the waveform has shape {list(waveform.shape)} and type {waveform.dtype};"
            " expected stereo [2, samples], 5.1 or 7.1, in float32 with at least one sample."
        )
    if isinstance(sampling_rate, bool) or sampling_rate != int(sampling_rate) or sampling_rate < 1:
        raise OptionError(f"sampling_rate={sampling_rate} is not a positive whole number of hertz.")


def is_of_16_bits(waveform: Array) -> bool:
    """Whether every sample is a whole number of 1/32768, as those are that were read from 16 bits;
    NaN, which becomes silence, is.
    """
    steps = np.asarray(waveform, np.float32) * np.float32(32768)
    whole = (steps == np.rint(steps)) & (steps >= -32768) & (steps <= 32767)
    return bool((whole | np.isnan(steps)).all())


def to_int16(waveform: Array, of_16_bits: bool | None = None) -> tuple[NDArray[np.int16], int]:
    """Clip to [-1, 1], scale by 32767, truncate toward zero; NaN becomes silence.

    Sound that was read from 16 bits is written as those bits, so that it stays what it was.

    Args:
        waveform: `[C, N]` float.
        of_16_bits: whether what it is a piece of `is_of_16_bits`; None: it is all.

    Returns:
        `[N, C]` int16, channels interleaved, and how many samples are NaN.
    """
    values = np.asarray(waveform, np.float32)
    not_numbers = int(np.isnan(values).sum())
    if not_numbers:
        values = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=-1.0)
    if is_of_16_bits(waveform) if of_16_bits is None else of_16_bits:
        scaled = values * np.float32(32768)
    else:
        scaled = np.clip(values, -1, 1) * np.float32(32767)
    return np.ascontiguousarray(scaled.astype(np.int16).T), not_numbers


def audio_samples(num_frames: int, frame_rate: Fraction, sampling_rate: int) -> int:
    """Count the samples that last exactly as long as the picture (nearest, ties to even)."""
    return round(num_frames / frame_rate * sampling_rate)


class AudioTrack:
    """Feeds a waveform to an audio stream in pieces, so that it interleaves with the picture."""

    def __init__(
        self,
        container: OutputContainer,
        codec: Codec,
        waveform: Array,
        sampling_rate: int,
    ) -> None:
        self._container = container
        self._samples, self._not_numbers = to_int16(waveform)
        self._rate = int(sampling_rate)
        self._position = 0
        self._dropped = 0  # samples that are encoded and no longer held
        self._stream: AudioStream = container.add_stream(codec, rate=self._rate)
        self._layout = LAYOUTS[waveform.shape[0]]
        self._stream.codec_context.layout = self._layout
        self._stream.codec_context.time_base = Fraction(1, self._rate)

    @property
    def length(self) -> int:
        """Samples in the waveform, before any fitting."""
        return self._dropped + len(self._samples)

    def append(self, waveform: Array, of_16_bits: bool | None = None) -> None:
        """Add sound at the end, see `to_int16`; what is encoded is let go."""
        added, not_numbers = to_int16(waveform, of_16_bits)
        rest = self._samples[self._position - self._dropped :]
        self._samples, self._dropped = np.concatenate([rest, added]), self._position
        self._not_numbers += not_numbers

    def write_until(self, end: int) -> None:
        """Encode the samples up to `end`; beyond the waveform there is silence."""
        while self._position < end:
            stop = min(end, self._position + _BLOCK)
            block = self._samples[self._position - self._dropped : stop - self._dropped]
            missing = stop - self._position - len(block)
            if missing:
                block = np.concatenate([block, np.zeros((missing, block.shape[1]), np.int16)])
            frame = av.AudioFrame.from_ndarray(
                block.reshape(1, -1), format="s16", layout=self._layout
            )
            frame.sample_rate = self._rate
            frame.pts = self._position
            frame.time_base = Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._position = stop

    def finish(self) -> None:
        """Flush the encoder; warns of NaN."""
        if self._not_numbers:
            warnings.warn(
                f"{self._not_numbers} audio samples are NaN; written as silence.", stacklevel=2
            )
        self._container.mux(self._stream.encode(None))


def check_rate(sampling_rate: int, codec: Codec = "aac") -> None:
    """Refuse a sampling rate that a codec cannot carry.

    Raises:
        OptionError: naming the allowed rates.
    """
    allowed = sorted(av.Codec(codec, "w").audio_rates or [])
    if allowed and sampling_rate not in allowed:
        name = {"aac": "AAC", "libmp3lame": "MP3"}.get(codec, codec)
        raise OptionError(
            f"sampling_rate={sampling_rate} Hz cannot be stored as {name};"
            f" allowed: {', '.join(map(str, allowed))}."
        )


def write_audio(
    path: str | Path,
    waveform: Array,
    sampling_rate: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a stereo sound file by the extension: `.wav` and `.flac` keep 16 bits exactly, `.mp3`
    and `.m4a` (AAC) are lossy.

    The file appears under its name only when it is complete.

    Args:
        path: the file; an existing one is replaced.
        waveform: `[2, N]` float, full scale +-1; clipped beyond.
        sampling_rate: in Hz, kept as it is.
        metadata: tags, as far as the container knows them (wav: title, artist, comment, ...).

    Raises:
        MediaError: the path cannot be written or the disk is full.
        ShapeError: the waveform is not `[2, N]` with N >= 1.
        OptionError: the sampling rate is not a positive whole number, or not one of the codec's.
    """
    path = Path(path)
    check_output_path(path, "audio")
    check_waveform(waveform, sampling_rate)
    if path.suffix.lower() == ".mp3" and waveform.shape[0] != 2:
        raise OptionError(
            f"'{path}' cannot hold the {LAYOUTS[waveform.shape[0]]} sound of the clip: write a "
            ".wav, .flac or .m4a file."
        )
    container_format, codec = AUDIO_FORMATS[path.suffix.lower()], _CODECS[path.suffix.lower()]
    check_rate(sampling_rate, codec)
    options = {"movflags": "faststart+use_metadata_tags"} if container_format == "ipod" else {}
    with OutputFile(path) as sink, sink.guard():
        with av.open(sink, "w", format=container_format, options=options) as container:
            container.metadata.update(metadata or {})
            track = AudioTrack(container, codec, waveform, sampling_rate)
            track.write_until(track.length)
            track.finish()
