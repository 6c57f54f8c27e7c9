"""What finishing frames on a device takes of its memory, for the plan and for a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ltx2rt.device.arena import ALIGNMENT, aligned
from ltx2rt.latents.tiling import AxisTile
from ltx2rt.media.color import FrameForm

Axes = tuple[Sequence[AxisTile], Sequence[AxisTile], Sequence[AxisTile]]

#: frames that are finished and come down together
SLICE_FRAMES = 8
#: form of frames -> the most bytes of one of its pixels
PIXEL_BYTES: dict[FrameForm, int] = {
    "i420": 3,
    "rgb": 3,
    "rgb_rounded": 3,
    "yuv422p10": 4,
    "float": 12,
}
F32_BYTES = np.dtype(np.float32).itemsize


class FrameSizes(NamedTuple):
    """What the memory of a decoding depends on: most frames, rows and columns of a tile, the most
    frames of tiles that begin together, the picture's rows and columns, bytes of what the decoder
    itself holds, and of a pixel that is finished.
    """

    tile: tuple[int, int, int]
    frames: int
    height: int
    width: int
    decoder_bytes: int
    pixel_bytes: int

    @property
    def frame_bytes(self) -> int:
        """Of a frame as float32."""
        return 3 * self.height * self.width * F32_BYTES

    @property
    def blocks(self) -> dict[str, int]:
        """Name -> bytes of what is held while a clip is decoded."""
        tile = math.prod(self.tile) * F32_BYTES
        slices = -(-self.frames // SLICE_FRAMES)
        return {
            "canvas": self.frames * self.frame_bytes,
            "store": self.frames * self.height * self.width * self.pixel_bytes,
            "tile": 3 * tile,
            "piece": tile,
            "blended": tile,
            "decoder": self.decoder_bytes,
            "counts": slices * ALIGNMENT,
            "rounding": ALIGNMENT,
        }

    def bytes(self, axis_tiles: int) -> int:
        """All of them, with the weights of so many tiles along the three axes."""
        longest = max(self.frames, self.height, self.width) * F32_BYTES
        return sum(map(aligned, self.blocks.values())) + axis_tiles * aligned(longest)


def sizes_of(axes: Axes, decoder_bytes: int, form: FrameForm) -> FrameSizes:
    """Sizes of a clip that is decoded in these tiles and finished in this form."""
    tile = [max(t.target.stop - t.target.start for t in axis) for axis in axes]
    return FrameSizes(
        tile=(tile[0], tile[1], tile[2]),
        frames=tile[0],
        height=axes[1][-1].target.stop,
        width=axes[2][-1].target.stop,
        decoder_bytes=decoder_bytes,
        pixel_bytes=PIXEL_BYTES[form],
    )
