"""A generated clip of one frame, saved as a still."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltx2rt.errors import OptionError
from ltx2rt.media.still_writer import write_image
from ltx2rt.pipelines.clip import Clip


@dataclass(slots=True, kw_only=True, eq=False)
class ImageClip(Clip):
    """A clip whose first frame is the result."""

    def save(self, path: str | Path, *, fragmented: bool = False) -> None:
        """Write a PNG; it appears when it is complete.

        Raises:
            MediaError: the file cannot be written.
            OptionError: a fragmented file was asked for.
        """
        if fragmented:
            raise OptionError("an image is not written in fragments; leave --fragmented out.")
        frames = np.concatenate(list(self.float_frames()))
        write_image(path, frames[0], self.metadata())
