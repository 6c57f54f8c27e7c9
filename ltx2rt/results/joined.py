"""Clips one after the other, cross-faded over the frames that they share: a stream, of which only
the shared frames, and sound of a second or two, are held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import OptionError
from ltx2rt.media.color import unit_float
from ltx2rt.media.encoding import VideoEncoding, sound_codec, stored_rate
from ltx2rt.media.image import resize_and_crop
from ltx2rt.media.reader import count_frames, iterate_video_frames, probe_video
from ltx2rt.media.sound import stereo_pieces
from ltx2rt.media.writer import VideoWriter
from ltx2rt.results.joined_sound import JoinedSound, Piece, Sound


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stretch:
    """A part of a joined clip.

    Attributes:
        frames: `[n, H, W, 3]` each, float in [0, 1] or uint8, all of one size.
        num_frames: in all of them together.
        sound: what gives it from its beginning, and its rate in Hz; None: silence.
        shared_before, shared_after: frames that it shares with the stretches before and after it,
            over which they are cross-faded; 0: a hard cut.
    """

    frames: Iterable[Array]
    num_frames: int
    sound: Sound | None
    shared_before: int = 0
    shared_after: int = 0


def write_joined(
    path: str | Path | BinaryIO,
    stretches: Iterable[Stretch],
    height: int,
    width: int,
    frame_rate: float,
    sampling_rate: int | None,
    *,
    encoding: VideoEncoding | None = None,
    fragmented: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write stretches as one video; a stretch is asked for when those before it are written.

    Args:
        path: see `VideoWriter`.
        stretches: at least one.
        height, width, frame_rate: of the video; stretches have them.
        sampling_rate: of its sound, to which stretches are brought; None: it has none.
        encoding, fragmented, metadata: see `VideoWriter`.

    Returns:
        Frames that were written.

    Raises:
        OptionError: stretches share more frames than they have, or not as many as their neighbours.
        MediaError: the file cannot be written.
    """
    if sampling_rate is not None:
        suffix = Path(path).suffix.lower() if isinstance(path, str | Path) else ".mp4"
        codec = sound_codec(suffix, encoding.codec if encoding else None)
        sampling_rate = stored_rate(codec, sampling_rate)
    sound = None if sampling_rate is None else (np.zeros((2, 0), np.float32), sampling_rate)
    with VideoWriter(
        path,
        width,
        height,
        frame_rate,
        sound,
        encoding=encoding,
        fragmented=fragmented,
        metadata=metadata,
        growing_audio=True,
    ) as writer:
        for frame, wave in _parts(stretches, float(writer.frame_rate), sampling_rate):
            if wave is not None:
                writer.add_sound(*wave)
            if frame is not None:
                writer.write(frame[None])
        return writer.num_frames


def _parts(
    stretches: Iterable[Stretch], frame_rate: float, sampling_rate: int | None
) -> Iterator[tuple[Array | None, Piece | None]]:
    """Frames and sound in turn; sound comes shortly before the frames that it goes with."""

    def samples(frames: int) -> int:
        return round(frames / frame_rate * (sampling_rate or 0))

    held: deque[Array] = deque()
    sound = None if sampling_rate is None else JoinedSound(sampling_rate)
    heard = shown = 0
    for stretch in stretches:
        before, after = stretch.shared_before, stretch.shared_after
        if stretch.num_frames < max(before + after, 1) or len(held) != before:
            raise OptionError(
                f"a clip of {stretch.num_frames} frames cannot share {before} with the one before "
                f"it, which shares {len(held)}, and {after} with the one after it; use a longer "
                "clip, or share fewer."
            )
        waves: Iterator[Piece] = iter(())
        if sound is not None:
            waves = sound.stretch(stretch.sound, samples(stretch.num_frames), samples(after))
        first, held = held, deque()
        for frame in _single(stretch.frames):
            if first:
                share = 1 - len(first) / (before + 1)
                frame = _blend(first.popleft(), frame, share)
            held.append(frame)
            if len(held) > after:
                shown += 1
                while heard < samples(shown + 1):  # a frame ahead, so that rounding is no matter
                    if (wave := next(waves, None)) is None:
                        break
                    heard += wave[0].shape[1]
                    yield None, wave
                yield held.popleft(), None
        for wave in waves:
            heard += wave[0].shape[1]
            yield None, wave
    if sound is not None:
        yield None, (sound.rest, None)
    for frame in held:
        yield frame, None


def _single(chunks: Iterable[Array]) -> Iterator[Array]:
    """Frames one by one."""
    return (frame for chunk in chunks for frame in chunk)


def _blend(old: Array, new: Array, share: float) -> F32:
    """Two frames of any type as one of float32 in [0, 1]; `share` is the new one's."""
    mixed: F32 = unit_float(old)[0] * np.float32(1 - share)
    mixed += unit_float(new)[0] * np.float32(share)
    return mixed


def file_stretch(
    path: Path,
    size: tuple[int, int],
    frame_rate: float,
    *,
    shared_before: int = 0,
    shared_after: int = 0,
) -> Stretch:
    """A video file as a stretch, scaled and cropped to a size and shown at a frame rate.

    Args:
        path: of the file.
        size: height and width.
        frame_rate: of the whole.
        shared_before, shared_after: see `Stretch`.

    Raises:
        MediaError: it cannot be read.
    """

    def frames() -> Iterator[Array]:
        for frame in iterate_video_frames(path, None, frame_rate):
            if frame.shape[:2] == size:
                yield frame[None]
            else:
                yield resize_and_crop(frame[None], *size) / np.float32(255)

    info = probe_video(path)
    return Stretch(
        frames=frames(),
        num_frames=count_frames(path, frame_rate),
        sound=(partial(stereo_pieces, path), info.audio_sampling_rate) if info.has_audio else None,
        shared_before=shared_before,
        shared_after=shared_after,
    )


def join_clips(
    clips: Sequence[str | Path],
    path: str | Path | BinaryIO,
    *,
    overlap: int = 0,
    encoding: VideoEncoding | None = None,
    fragmented: bool = False,
) -> int:
    """Write video files one after the other, at the size and frame rate of the first.

    ```python
    ltx2rt.join_clips(["a.mp4", "b.mp4"], "both.mp4")
    ```

    Args:
        clips: two or more.
        path: the result, see `VideoWriter`.
        overlap: frames at the end of each clip that the next begins with as well: picture and sound
            are cross-faded over them.
        encoding, fragmented: see `Clip.save`.

    Returns:
        Frames of the result.

    Raises:
        OptionError: fewer than two clips, or one is too short to share that much.
        MediaError: a file cannot be read or written.
    """
    files = [Path(clip) for clip in clips]
    if len(files) < 2:
        found = f"'{files[0]}' alone" if files else "nothing"
        raise OptionError(f"{found} cannot be joined; name two or more clips.")
    if overlap < 0:
        raise OptionError(f"clips cannot share {overlap} frames; give 0 (a cut) or more.")
    infos = [probe_video(file) for file in files]
    size, rate = (infos[0].height, infos[0].width), float(infos[0].frame_rate)
    last = len(files) - 1
    for index, file in enumerate(files):
        shared = overlap * ((index > 0) + (index < last))
        if (count := count_frames(file, rate)) < max(shared, 1):
            raise OptionError(
                f"'{file}' has {count} frames at {rate:g} frames per second, fewer than the "
                f"{shared} that it shares with its neighbours; choose a smaller overlap."
            )
    rates = [info.audio_sampling_rate for info in infos if info.has_audio]
    stretches = (
        file_stretch(
            file,
            size,
            rate,
            shared_before=overlap if index else 0,
            shared_after=overlap if index < last else 0,
        )
        for index, file in enumerate(files)
    )
    return write_joined(
        path,
        stretches,
        *size,
        rate,
        rates[0] if rates else None,
        encoding=encoding,
        fragmented=fragmented,
        metadata={"joined": " ".join(file.name for file in files)},
    )
