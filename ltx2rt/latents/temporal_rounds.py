"""Frame arithmetic of DFR: the canvas of keyframes, and the tiles of its temporal rounds
(spec/pipelines.md §12).

Numbers are pixel frames unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ltx2rt.errors import Field, Problem, ShapeError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS

#: distances between keyframes; the longer one wins ties
SEGMENTS = (32, 24)
_TIME = VIDEO_SCALE_FACTORS.time


@dataclass(frozen=True, slots=True)
class KeyframeCanvas:
    """A clip made long enough to end with a keyframe.

    Attributes:
        num_frames: of the canvas, at least those asked for.
        keyframes: frames at which keyframes are generated, the last one included.
    """

    num_frames: int
    keyframes: tuple[int, ...]


def keyframe_canvas(num_frames: int) -> KeyframeCanvas:
    """The canvas of a clip of `num_frames`.

    Raises:
        ShapeError: the clip has one frame.
    """
    last = num_frames - 1
    if last < 1:
        raise ShapeError(
            Problem(
                Field("num_frames"),
                f"={num_frames} leaves nothing between keyframes; the shortest clip has "
                f"{_TIME + 1}.",
            )
        )
    segment = min(SEGMENTS, key=lambda length: -last % length)
    end = last + -last % segment
    return KeyframeCanvas(end + 1, tuple(range(segment, end + 1, segment)))


@dataclass(frozen=True, slots=True)
class TemporalTile:
    """A part of the clip that one stage of a temporal round refines.

    Attributes:
        start, end: first and last frame.
        anchors: frames of the clip at which it is shown carried keyframes.
        slots: frames of the clip at which it generates new ones.
        drop: latent frames at its beginning that belong to the tile before.
    """

    start: int
    end: int
    anchors: tuple[int, ...]
    slots: tuple[int, ...]
    drop: int

    @property
    def latents(self) -> slice:
        """Its latent frames within the clip's."""
        return slice(self.start // _TIME, self.end // _TIME + 1)


def temporal_tiles(seams: Sequence[int], count: int) -> tuple[TemporalTile, ...]:
    """Split the clip at its keyframes into at most `count` tiles, the longer ones first; all but
    the first begin one segment early.

    Args:
        seams: frames of the keyframes, rising; the last one ends the clip.
        count: tiles wanted.

    Raises:
        ShapeError: a segment is not a multiple of 8 frames and at least 16.
    """
    boundaries = (0, *seams)
    wrong = [b - a for a, b in pairwise(boundaries) if (b - a) % _TIME or b - a < 2 * _TIME]
    if wrong or not seams:
        raise ShapeError(
            f"Keyframes at {list(seams)} are {wrong or 'no'} frames apart; multiples of {_TIME} "
            f"and at least {2 * _TIME} are needed."
        )
    size, rest = divmod(len(seams), min(count, len(seams)))
    tiles: list[TemporalTile] = []
    first = 0
    while first < len(seams):
        stop = first + size + (len(tiles) < rest)
        window = boundaries[max(0, first - 1) : stop + 1]
        start = window[0]
        tiles.append(
            TemporalTile(
                start=start,
                end=window[-1],
                anchors=tuple(b for b in window if b),
                slots=tuple((a + b) // 2 for a, b in pairwise(window)),
                drop=(boundaries[first] - start) // _TIME + 1 if first else 0,
            )
        )
        first = stop
    return tuple(tiles)
