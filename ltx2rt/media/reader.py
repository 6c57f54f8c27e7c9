"""Video frames, sound and facts of media files.

Rules: spec/media_io.md §1 and spec/conditioning.md §4.1, §4.2, §5.1.

Only local files are opened, and files may not refer to others (playlists).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import MediaError, OptionError
from ltx2rt.media import pyav as av

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_LOCAL_ONLY = {"protocol_whitelist": "file"}
# Integer sample formats: full scale and the value of silence. Upstream leaves the 128 of unsigned
# bytes in, which offsets the whole wave by +1; we take it out.
_INTEGER_SCALES = {"u8": (128.0, 128.0), "s16": (32768.0, 0.0), "s32": (2147483648.0, 0.0)}

# Codecs with overlapping blocks (AAC, Opus, MP3) decode the first block after a seek wrongly;
# start a few blocks early and drop them. Upstream seeks to the start itself.
_PREROLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """Facts about a video file.

    Attributes:
        width, height: pixels as coded; rotation tags are not applied.
        num_frames: from the header, or counted by decoding where the header has none.
        frame_rate: average, frames per second.
        duration_s: of the picture.
        audio_sampling_rate, audio_channels: of the first audio stream; 0 without one.
        colour_matrix, colour_range: H.273 numbers (1 is BT.709; range 1 is limited).
        metadata: tags of the file.
    """

    width: int
    height: int
    num_frames: int
    frame_rate: Fraction
    duration_s: float
    audio_sampling_rate: int
    audio_channels: int
    colour_matrix: int
    colour_range: int
    metadata: dict[str, str]

    @property
    def has_audio(self) -> bool:
        return self.audio_sampling_rate > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """Facts about the first audio stream of a file: its rate in Hz and its channels."""

    sampling_rate: int
    channels: int


@contextmanager
def _reading(path: str | Path, kind: str) -> Iterator[InputContainer]:
    """Open a media file; what libav raises inside becomes a MediaError about `path`."""
    path = Path(path)
    if not path.is_file():
        what = "it is a directory" if path.is_dir() else "there is no such file"
        raise MediaError(f"cannot read {kind} from '{path}': {what}.")
    try:
        with av.open(str(path.absolute()), "r", options=_LOCAL_ONLY) as container:
            yield container
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        raise MediaError(
            f"cannot read {kind} from '{path}': the file is damaged, truncated or not a media file"
            f" ({getattr(error, 'strerror', None) or error})."
        ) from error


def _seek(container: InputContainer, stream: VideoStream | AudioStream, time_s: float) -> bool:
    """Go to the key frame at or before `time_s`; False (and nothing more to read) if impossible."""
    try:
        container.seek(int(time_s / (stream.time_base or 1)), stream=stream)
    except av.FFmpegError:
        return False
    return True


def _video_frames(container: InputContainer, path: str | Path) -> Iterator[VideoFrame]:
    if not container.streams.video:
        raise MediaError(f"cannot read video from '{path}': the file has no video stream.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError(
                f"cannot read video from '{path}': the file is truncated; copy or write it again."
            )
        yield from packet.decode()


def _audio_stream(container: InputContainer, path: str | Path) -> AudioStream:
    if not container.streams.audio:
        raise MediaError(f"cannot read audio from '{path}': the file has no audio stream.")
    return container.streams.audio[0]


def _rgb(frame: VideoFrame) -> U8:
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def read_tags(path: str | Path) -> dict[str, str]:
    """Read the tags of a video or sound file, names in lower case.

    Raises:
        MediaError: missing, or not a media file.
    """
    with _reading(path, "tags") as container:
        return {name.lower(): text for name, text in container.metadata.items()}


def probe_video(path: str | Path) -> VideoInfo:
    """Read the facts of a video file.

    Raises:
        MediaError: missing, not a media file, or without a video stream or frame rate.
    """
    with _reading(path, "video") as container:
        if not container.streams.video:
            raise MediaError(f"cannot read video from '{path}': the file has no video stream.")
        stream = container.streams.video[0]
        frame_rate = stream.average_rate
        if not frame_rate:
            raise MediaError(f"cannot read video from '{path}': it has no frame rate.")
        context = stream.codec_context
        width, height = context.width, context.height
        matrix, colour_range = context.colorspace, context.color_range
        metadata = dict(container.metadata)
        audio = container.streams.audio[0].codec_context if container.streams.audio else None
        num_frames = stream.frames or sum(1 for _ in _video_frames(container, path))
        return VideoInfo(
            width=width,
            height=height,
            num_frames=num_frames,
            frame_rate=frame_rate,
            duration_s=float(num_frames / frame_rate),
            audio_sampling_rate=audio.sample_rate if audio else 0,
            audio_channels=audio.channels if audio else 0,
            colour_matrix=int(matrix),
            colour_range=int(colour_range),
            metadata=metadata,
        )


def probe_audio(path: str | Path) -> AudioInfo:
    """Read the facts of a file's sound.

    Raises:
        MediaError: missing, not a media file, or without an audio stream.
    """
    with _reading(path, "audio") as container:
        context = _audio_stream(container, path).codec_context
        return AudioInfo(sampling_rate=context.sample_rate, channels=context.channels)


def iterate_video_frames(path: str | Path, frame_cap: int | None = None) -> Iterator[U8]:
    """Decode frames one by one from the first; timestamps are ignored.

    Args:
        path: the video file.
        frame_cap: stop after so many; None for all.

    Yields:
        `[H, W, 3]` uint8, converted by libav as the file's colour tags say.

    Raises:
        MediaError: see `probe_video`; for a file that breaks off, after its last whole frame.
    """
    count = 0
    with _reading(path, "video") as container:
        frames = _video_frames(container, path)
        while frame_cap is None or count < frame_cap:
            frame = next(frames, None)
            if frame is None:
                break
            count += 1
            yield _rgb(frame)
    if not count:
        raise MediaError(f"cannot read video from '{path}': it holds no frames.")


def read_video_frames(path: str | Path, frame_cap: int | None = None) -> U8:
    """Decode at most `frame_cap` frames from the first (a shorter file gives fewer).

    Returns:
        `[n, H, W, 3]` uint8, n >= 1.

    Raises:
        MediaError: see `iterate_video_frames`.
        OptionError: `frame_cap` is below 1.
    """
    if frame_cap is not None and frame_cap < 1:
        raise OptionError(f"frame_cap={frame_cap} is below 1.")
    return np.stack(list(iterate_video_frames(path, frame_cap)))


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
        start_s: first second wanted.
        max_duration_s: cut to round(max_duration_s * rate) samples; None for the rest.

    Returns:
        `[channels, N]` float32 (integer formats scaled to +-1) and the sampling rate in Hz. AAC
        can end with up to one frame (1024 samples) of encoder padding.

    Raises:
        MediaError: missing, damaged, without an audio stream, or nothing in the window.
    """
    blocks: list[F32] = []
    first_time = 0.0
    with _reading(path, "audio") as container:
        stream = _audio_stream(container, path)
        rate = stream.codec_context.sample_rate
        end_s = None if max_duration_s is None else start_s + max_duration_s
        if start_s > 0 and not _seek(container, stream, max(0.0, start_s - _PREROLL_S)):
            whole, rate = read_audio(path)
            return _cut(whole, path, rate, start_s, max_duration_s)
        for frame in container.decode(stream):
            time = float(frame.time or 0.0)
            if time + frame.samples / rate <= start_s:
                continue
            if end_s is not None and time >= end_s:
                break
            if not blocks:
                first_time = time
            blocks.append(_to_float(frame, path))
    wave = np.concatenate(blocks, axis=1) if blocks else np.zeros((0, 0), np.float32)
    return _cut(wave, path, rate, start_s, max_duration_s, first_time)


def _cut(
    wave: F32,
    path: str | Path,
    rate: int,
    start_s: float,
    max_duration_s: float | None,
    first_time: float = 0.0,
) -> tuple[F32, int]:
    """Take the window out of sound that begins at `first_time`."""
    wave = wave[:, max(0, round((start_s - first_time) * rate)) :]
    if max_duration_s is not None:
        wave = wave[:, : round(max_duration_s * rate)]
    if not wave.size:
        raise MediaError(f"'{path}' has no sound from {start_s} seconds on.")
    return np.ascontiguousarray(wave), rate


def _to_float(frame: AudioFrame, path: str | Path) -> F32:
    """Bring one decoded block to `[channels, N]` float32."""
    samples: Array = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    name = frame.format.name.removesuffix("p")
    if name not in _INTEGER_SCALES:
        raise MediaError(f"the sample format {frame.format.name} of '{path}' is not supported.")
    scale, silence = _INTEGER_SCALES[name]
    return ((samples.astype(np.float64) - silence) / scale).astype(np.float32)
