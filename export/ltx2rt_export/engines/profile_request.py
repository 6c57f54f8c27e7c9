"""What buckets are made for, and what their rules are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltx2rt.bundle.buckets import Bucket, Range
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt_export.engines.shapes import ClipShape

#: a size that is always 1
ONE = (1, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What buckets are made for.

    Attributes:
        shapes: clips, at full size.
        max_batch: guidance passes that may run together.
        factors: pixels per latent cell of this model.
        options: options of every component of the model, as manifests record them.
    """

    shapes: tuple[ClipShape, ...]
    max_batch: int
    factors: VideoScaleFactors
    options: Mapping[str, Mapping[str, Any]]

    def stages(self) -> tuple[ClipShape, ...]:
        """The clips and their half-size stages, smallest first."""
        halves = {half for s in self.shapes if (half := s.half(self.factors)) is not None}
        return tuple(
            sorted({*self.shapes, *halves}, key=lambda s: (s.width * s.height * s.num_frames, s))
        )


#: makes the buckets of a component
Rule = Callable[[ProfileRequest], list[Bucket]]


def range_of(lengths: Sequence[int]) -> Range:
    """Smallest, most common (then longest) and largest."""
    return min(lengths), max(lengths, key=lambda n: (lengths.count(n), n)), max(lengths)


def make_bucket(name: str, **sizes: tuple[int, ...]) -> Bucket:
    return Bucket(name=name, sizes=sizes)
