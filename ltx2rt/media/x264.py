"""How H.264 is encoded: the same frames give the same bytes."""

from __future__ import annotations

import platform


def x264_options(crf: int) -> dict[str, str]:
    """Options of libx264 at a quality from 0 (lossless) to 51.

    x264's AVX-512 code is left out, as it is not repeatable: a clip of 832x480 pixels became
    another file in every run (PyAV 18.1). SSE4.2 is what numpy asks of any x86 machine; it was not
    slower. Elsewhere x264 chooses by itself.
    """
    options = {"crf": str(crf), "preset": "veryfast"}
    if platform.machine().lower() in ("x86_64", "amd64"):
        options["x264-params"] = "asm=SSE4.2"
    return options
