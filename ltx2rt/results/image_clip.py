"""A generated clip of one frame, saved as a still."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ltx2rt.errors import OptionError
from ltx2rt.media.encoding import VideoEncoding
from ltx2rt.media.still_writer import write_image
from ltx2rt.results.clip import Clip


@dataclass(slots=True, kw_only=True, eq=False)
class ImageClip(Clip):
    """A clip whose first frame is the result."""

    def save(
        self,
        path: str | Path | BinaryIO,
        *,
        fragmented: bool = False,
        frames: str | Path | None = None,
        folder: Path | None = None,
        encoding: VideoEncoding | None = None,
        joined: bool = False,
    ) -> None:
        """Write a PNG; it appears when it is complete.

        Raises:
            MediaError: the file cannot be written.
            OptionError: a fragmented file, a stream, single frames or an encoding were asked for.
        """
        if (
            fragmented
            or frames is not None
            or encoding is not None
            or joined
            or not isinstance(path, str | Path)
        ):
            raise OptionError(
                "an image goes to a .png file, not to a stream, fragments, frames or a codec."
            )
        picture = np.concatenate(list(self.float_frames()))
        write_image(path, picture[0], self.tags(Path(path).parent))
