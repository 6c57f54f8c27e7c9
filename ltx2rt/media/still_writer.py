"""PNG stills."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ltx2rt.media.color import Frames, check_frames, to_uint8
from ltx2rt.media.files import OutputFile


def write_image(path: str | Path, frame: Frames, metadata: Mapping[str, str] | None = None) -> None:
    """Write a still as PNG (8-bit RGB, rounded); it takes its name when it is complete.

    Args:
        path: the file; an existing one is replaced.
        frame: `[H, W, 3]`, float in [0, 1] (clamped; NaN is black) or uint8.
        metadata: text chunks of the file.

    Raises:
        MediaError: the file cannot be written.
        ShapeError: not a frame.
    """
    check_frames(frame[None])
    pixels, _ = to_uint8(frame)
    texts = PngInfo()
    for name, text in (metadata or {}).items():
        texts.add_itxt(name, text)
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "PNG", pnginfo=texts)
    with OutputFile(Path(path)) as sink, sink.guard():
        sink.write(memory.getvalue())
