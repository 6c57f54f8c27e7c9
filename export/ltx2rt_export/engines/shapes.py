"""`--shapes 768x512x121,...`: the clips that engines are built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS, VideoScaleFactors, nearest_multiples


@dataclass(frozen=True, slots=True, order=True)
class ClipShape:
    """Width and height in pixels, and frames, of a clip that pipelines may be asked for."""

    width: int
    height: int
    num_frames: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"

    def cells(self, factors: VideoScaleFactors = VIDEO_SCALE_FACTORS) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        frames = (self.num_frames - 1) // factors.time + 1
        return frames, self.height // factors.height, self.width // factors.width

    def half(self, factors: VideoScaleFactors = VIDEO_SCALE_FACTORS) -> ClipShape | None:
        """The clip that stage 1 of a two-stage pipeline makes; None if the sides do not allow it
        (one-stage pipelines only).
        """
        if self.width % (2 * factors.width) or self.height % (2 * factors.height):
            return None
        return ClipShape(self.width // 2, self.height // 2, self.num_frames)


def parse_shapes(
    texts: Sequence[str], factors: VideoScaleFactors = VIDEO_SCALE_FACTORS
) -> tuple[ClipShape, ...]:
    """Read `WIDTHxHEIGHTxFRAMES` texts.

    Raises:
        ShapeError: lists every text that is not valid, with the nearest shape that is.
    """
    shapes: list[ClipShape] = []
    problems: list[str] = []
    for text in texts:
        numbers = text.lower().split("x")
        if len(numbers) != 3 or not all(n.isascii() and n.isdigit() for n in numbers):
            problems.append(f"{text!r} is not WIDTHxHEIGHTxFRAMES, e.g. 768x512x121")
            continue
        shape = ClipShape(*(int(n) for n in numbers))
        nearest = _nearest(shape, factors)
        if nearest != shape:
            problems.append(
                f"{text} is not a size of clips (sides are multiples of {factors.width}, frames "
                f"{factors.time}k+1). Nearest valid: {nearest.name}"
            )
        elif shape not in shapes:
            shapes.append(shape)
    if problems:
        raise ShapeError("--shapes", problems)
    return tuple(sorted(shapes, key=lambda s: (s.width * s.height * s.num_frames, s)))


def _nearest(shape: ClipShape, factors: VideoScaleFactors) -> ClipShape:
    def closest(value: int, step: int, offset: int = 0) -> int:
        return min(nearest_multiples(value, step, offset), key=lambda n: (abs(n - value), n))

    return ClipShape(
        closest(shape.width, factors.width),
        closest(shape.height, factors.height),
        closest(shape.num_frames, factors.time, 1),
    )
