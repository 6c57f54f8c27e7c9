"""Frames and facts of video files.

Rules: spec/media_io.md §1 and spec/conditioning.md §4.1, §4.2; when a frame is shown: `clock`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ltx2rt.engine import U8
from ltx2rt.errors import OptionError
from ltx2rt.media.clock import timeline
from ltx2rt.media.container import decoded_frames, reading, video_stream
from ltx2rt.media.picture import upright_rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """Facts about a video file.

    Attributes:
        width, height: pixels as shown: upright, whatever way the frames are stored.
        num_frames: those that are shown, counted by decoding.
        frame_rate: frames per second; of a video whose rate varies, the constant one it is read at.
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


def read_tags(path: str | Path) -> dict[str, str]:
    """Read the tags of a video or sound file, names in lower case.

    Raises:
        MediaError: missing, or not a media file.
    """
    with reading(path, "tags") as container:
        return {name.lower(): text for name, text in container.metadata.items()}


def probe_video(path: str | Path) -> VideoInfo:
    """Read the facts of a video file; it is decoded once for them.

    Raises:
        MediaError: see `clock.timeline`.
    """
    times = timeline(path)
    with reading(path, "video") as container:
        context = video_stream(container, path).codec_context
        audio = container.streams.audio[0].codec_context if container.streams.audio else None
        return VideoInfo(
            width=times.width,
            height=times.height,
            num_frames=len(times.shown),
            frame_rate=times.frame_rate,
            duration_s=float(len(times.shown) / times.frame_rate),
            audio_sampling_rate=audio.sample_rate if audio else 0,
            audio_channels=audio.channels if audio else 0,
            colour_matrix=int(context.colorspace),
            colour_range=int(context.color_range),
            metadata=dict(container.metadata),
        )


def count_frames(path: str | Path, frame_rate: float | None = None) -> int:
    """How many frames `iterate_video_frames` gives at this rate."""
    return len(timeline(path).at(frame_rate))


def iterate_video_frames(
    path: str | Path,
    frame_cap: int | None = None,
    frame_rate: float | None = None,
    first: int = 0,
) -> Iterator[U8]:
    """Frames one by one, as they are shown. No more than one is held; those before the first are
    decoded, but not converted.

    Args:
        path: the video file.
        frame_cap: stop after so many; None for all.
        frame_rate: show the video at this rate: frames are repeated or left out, so that each is
            shown when it was. None for its own.
        first: begin with this frame.

    Yields:
        `[H, W, 3]` uint8, upright, converted by libav as the file's colour tags say.

    Raises:
        MediaError: see `clock.timeline`.
    """
    wanted = timeline(path).at(frame_rate)[first:][:frame_cap]
    with reading(path, "video") as container:
        kept = set(wanted)
        decoded = enumerate(decoded_frames(container, path))
        frames = upright_rgb((frame for number, frame in decoded if number in kept), path)
        shown = -1
        for number in wanted:
            if number != shown:
                pixels, shown = next(frames), number
            yield pixels


def read_video_frames(path: str | Path, frame_cap: int | None = None) -> U8:
    """At most `frame_cap` frames from the first, at the video's own rate (a shorter file gives
    fewer).

    Returns:
        `[n, H, W, 3]` uint8, n >= 1.

    Raises:
        MediaError: see `iterate_video_frames`.
        OptionError: `frame_cap` is below 1.
    """
    if frame_cap is not None and frame_cap < 1:
        raise OptionError(f"frame_cap={frame_cap} is below 1.")
    return np.stack(list(iterate_video_frames(path, frame_cap)))
