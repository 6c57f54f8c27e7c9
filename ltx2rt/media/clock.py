"""When the frames of a file are shown: the one clock of its picture and its sound.

Time 0 is when the picture begins; in a file of sound alone, when the sound does. Containers begin
anywhere (1.4 s in MPEG-TS), tracks begin apart, headers count frames that an edit list hides: so
frames are decoded and their time stamps read (spec/media_io.md §1).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ltx2rt.errors import MediaError
from ltx2rt.media.container import audio_stream, decoded_frames, has_picture, reading, video_stream
from ltx2rt.media.picture import picture_remarks, shown_size

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MAX_RATE = 240  # frames per second; time bases of 1/90000 are no frame rates
_LONGEST_S = 24 * 3600  # of a video whose frame rate varies


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        frame_rate: constant, frames per second. Of a video whose rate varies, the one that it is
            resampled to.
        shown: for each frame at that rate, which of the decoded frames it shows.
        width, height: pixels as shown.
    """

    frame_rate: Fraction
    shown: tuple[int, ...]
    width: int
    height: int

    def at(self, frame_rate: float | Fraction | None) -> tuple[int, ...]:
        """Which decoded frames are shown at another rate; None for the video's own."""
        if frame_rate is None:
            return self.shown
        times = [Fraction(i) / self.frame_rate for i in range(len(self.shown))]
        end = len(self.shown) / self.frame_rate
        return tuple(self.shown[i] for i in resampled(times, end, Fraction(frame_rate)))


def timeline(path: str | Path) -> Timeline:
    """Decode a video once for its time stamps; warns about what is not read as it is meant.

    Raises:
        MediaError: the file cannot be read, holds no frames, has no frame rate, breaks off, or its
            frames change their size.
    """
    path = Path(path)
    if not path.is_file():
        with reading(path, "video"):
            pass
    facts = path.stat()
    return _timeline(path.absolute(), path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _timeline(absolute: Path, path: Path, modified: int, size: int) -> Timeline:
    del absolute, modified, size  # they tell apart what else has this name
    stamps: list[Fraction | None] = []
    sizes: dict[tuple[int, int], None] = {}
    remarks: dict[str, None] = {}
    last = Fraction(0)
    with reading(path, "video") as container:
        stream = video_stream(container, path)
        rates = [r for r in _rates(stream) if 0 < r <= _MAX_RATE]
        if not rates:
            raise MediaError(f"cannot read video from '{path}': it has no frame rate.")
        for frame in decoded_frames(container, path):
            base = frame.time_base or Fraction(0)
            stamps.append(None if frame.pts is None else frame.pts * base)
            last = frame.duration * base
            sizes[shown_size(frame, path)] = None
            remarks |= dict.fromkeys(picture_remarks(frame, stream))
    if not stamps:
        raise MediaError(f"cannot read video from '{path}': it holds no frames.")
    if len(sizes) > 1:
        found = ", ".join(f"{w}x{h}" for w, h in sizes)
        raise MediaError(f"the frames of '{path}' change their size ({found}); write it in one.")
    for remark in remarks:
        warnings.warn(f"'{path}' {remark}.", stacklevel=4)
    rate, shown = _constant(stamps, last, rates, path)
    ((width, height),) = sizes
    return Timeline(rate, shown, width, height)


def _rates(stream: VideoStream) -> list[Fraction]:
    found = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return [rate for rate in found if rate]


def _constant(
    stamps: Sequence[Fraction | None], last: Fraction, rates: list[Fraction], path: Path
) -> tuple[Fraction, tuple[int, ...]]:
    """A constant frame rate, and which frames are shown at it: each one where the rate of the
    header is true to half a frame.
    """
    count = len(stamps)
    if any(stamp is None for stamp in stamps):  # AVI and others do not stamp every frame
        return rates[0], tuple(range(count))
    times = [stamp - (stamps[0] or 0) for stamp in stamps if stamp is not None]
    if count > 1 and times[-1] > 0:
        measured = Fraction((count - 1) / times[-1]).limit_denominator(1001)
        rates = [*rates, *([measured] if 0 < measured <= _MAX_RATE else [])]
    for rate in rates:
        if all(abs(time * rate - i) <= Fraction(1, 2) for i, time in enumerate(times)):
            return rate, tuple(range(count))
    if not 0 < times[-1] <= _LONGEST_S or min(times) < 0:
        raise MediaError(
            f"cannot read video from '{path}': its time stamps end at {float(times[-1]):g} s, not "
            "like those of a video; write it again."
        )
    steps = np.diff(np.array(times, np.float64))
    average = (count - 1) / times[-1]
    fitting = [rate for rate in rates if average <= rate <= 2 * average]
    rate = max(fitting, default=Fraction(-(-average // 1)))
    shown = resampled(times, times[-1] + (last or 1 / rate), rate)
    warnings.warn(
        f"the frame rate of '{path}' varies ({float(average):.4g} on average, {steps.min():.4f} to "
        f"{steps.max():.4f} s a frame): its {count} frames are read by their time stamps, as "
        f"{len(shown)} at {float(rate):g} per second.",
        stacklevel=5,
    )
    return rate, tuple(shown)


def resampled(times: Sequence[Fraction], end: Fraction, frame_rate: Fraction) -> list[int]:
    """Which frames a constant rate shows: each is shown from the nearest slot to its time on; of
    those that fall on one slot, the last.

    Args:
        times: when they are shown, from 0 on, ascending, in seconds.
        end: when the last one is gone.

    Returns:
        Indices into `times`, one a slot; one at least.
    """
    half = Fraction(1, 2)
    slots: NDArray[np.int64] = np.array([int(t * frame_rate + half) for t in times], np.int64)
    count = max(1, int(end * frame_rate + half))
    found = np.searchsorted(slots, np.arange(count), side="right") - 1
    return [int(i) for i in np.clip(found, 0, None)]


def start_of(path: str | Path) -> float:
    """The time stamp, in seconds, of what is time 0 in a file with sound.

    Raises:
        MediaError: it cannot be read, or has no sound.
    """
    with reading(path, "audio") as container:
        stream = audio_stream(container, path)
        frames: Iterator[VideoFrame | AudioFrame] = (
            decoded_frames(container, path) if has_picture(container) else container.decode(stream)
        )
        first = next(frames, None)
        return 0.0 if first is None else float(first.time or 0.0)
