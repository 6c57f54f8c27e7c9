"""`--preview FILE`: a small clip of what is being made, written anew while it is sampled."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from PIL import Image

from ltx2rt.engine import U8
from ltx2rt.progress import Preview

#: pixels of a latent cell
SCALE = 8


class PreviewWriter:
    """Writes every preview over the one before: the file is always a whole one.

    Args:
        path: `.gif` or `.webp`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, preview: Preview) -> None:
        from ltx2rt.media.animation import write_animation

        frames = enlarged(preview.frames)
        rate = Fraction(max(preview.frame_rate, 1)).limit_denominator(1000)
        text = f"{preview.stage} {preview.step}/{preview.total}"
        write_animation(self._path, [frames], len(frames), rate, text)


def enlarged(frames: U8) -> U8:
    """Frames of latent cells, smoothed to a size that people can see."""
    import numpy as np

    height, width = (SCALE * side for side in frames.shape[1:3])
    pictures = [
        Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames
    ]
    return np.stack([np.asarray(picture) for picture in pictures])


def check_preview(path: Path) -> None:
    """Refuse a file that is no animation, or that cannot be written.

    Raises:
        MediaError: says why.
    """
    from ltx2rt.media.files import check_output_path

    check_output_path(path, "animation")
