"""Previews of a clip that is being made, as pictures that people can see."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
from PIL import Image

from ltx2rt.engine import U8
from ltx2rt.media.animation import write_animation_to
from ltx2rt.progress import Preview

#: pixels of a latent cell
SCALE = 8


def enlarged(frames: U8) -> U8:
    """Frames of latent cells, `[F, h, w, 3]`, smoothed to `[F, 8h, 8w, 3]`."""
    height, width = (SCALE * side for side in frames.shape[1:3])
    pictures = [
        Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames
    ]
    return np.stack([np.asarray(picture) for picture in pictures])


def preview_rate(preview: Preview) -> Fraction:
    """Frames per second of a preview's animation."""
    return Fraction(max(preview.frame_rate, 1)).limit_denominator(1000)


def preview_text(preview: Preview) -> str:
    """Where it was taken."""
    return f"{preview.stage} {preview.step}/{preview.total}"


def preview_webp(preview: Preview) -> bytes:
    """An animated WebP."""
    frames, memory = enlarged(preview.frames), io.BytesIO()
    rate, text = preview_rate(preview), preview_text(preview)
    write_animation_to(memory, ".webp", [frames], len(frames), rate, text)
    return memory.getvalue()
