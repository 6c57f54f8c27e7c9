"""Sizes by the names that people use: 720p, 1080p portrait, 4k."""

from __future__ import annotations

import re

from ltx2rt.errors import OptionError

#: name -> the short and the long side in pixels
SIZES = {
    "360p": (360, 640),
    "480p": (480, 854),
    "540p": (540, 960),
    "576p": (576, 1024),
    "720p": (720, 1280),
    "1080p": (1080, 1920),
    "1440p": (1440, 2560),
    "2160p": (2160, 3840),
    "4k": (2160, 3840),
}
SHAPES = ("landscape", "portrait", "square")
ALLOWED = f"WIDTHxHEIGHT, or {', '.join(SIZES)}, with -portrait or -square behind it"


def frame_size(text: str) -> tuple[int, int]:
    """Height and width in pixels of `854x480` (width first, as everybody writes it), `720p`,
    `1080p-portrait` or `4k square`.

    ```python
    height, width = ltx2rt.frame_size("720p-portrait")
    ```

    Raises:
        OptionError: it is none of these.
    """
    exact = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if exact is not None:
        return int(exact[2]), int(exact[1])
    name, _, shape = text.strip().lower().replace(" ", "-").partition("-")
    if name not in SIZES or shape not in ("", *SHAPES):
        raise OptionError(f"a size of {text!r} is not known; allowed: {ALLOWED}.")
    short, long = SIZES[name]
    if shape == "portrait":
        return long, short
    return (short, short) if shape == "square" else (short, long)
