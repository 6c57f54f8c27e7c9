"""Animated GIF and WebP files, and stills of a clip of one frame: pictures without sound."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from ltx2rt.errors import MediaError, OptionError
from ltx2rt.media.color import Frames, check_frames, to_uint8
from ltx2rt.media.files import ANIMATION_FORMATS, OutputFile

#: of an animated WebP, 0 to 100
WEBP_QUALITY = 80
#: viewers show GIF frames shorter than 20 ms for 100 ms
MAX_GIF_RATE = 50


def check_animation(path: Path, frame_rate: float, quality: int | None) -> None:
    """Refuse what an animation cannot do.

    Raises:
        OptionError: a frame rate or quality that the format does not have.
    """
    problems: list[str] = []
    is_gif = path.suffix.lower() == ".gif"
    if is_gif and frame_rate > MAX_GIF_RATE:
        problems.append(
            f"a GIF shows at most {MAX_GIF_RATE} frames per second, the clip has {frame_rate:g}; "
            "write a .webp file"
        )
    if quality is not None and is_gif:
        problems.append("a GIF has no quality to choose: its 256 colours are what it is")
    if quality is not None and not is_gif and not 0 <= quality <= 100:
        problems.append(f"a quality of {quality} of a .webp file is not in [0, 100], 100 the best")
    if problems:
        raise OptionError(f"cannot write '{path}'", problems)


def frame_times_ms(num_frames: int, frame_rate: Fraction, unit: int) -> list[int]:
    """How long every frame is shown, in milliseconds: whole units, whose sum does not drift."""
    ends = [round(Fraction(1000 * i, unit) / frame_rate) * unit for i in range(num_frames + 1)]
    return [end - start for start, end in pairwise(ends)]


def write_animation(
    path: str | Path,
    chunks: Iterable[Frames],
    num_frames: int,
    frame_rate: Fraction,
    metadata: str,
    quality: int | None = None,
) -> None:
    """Write a `.gif` or `.webp` that repeats for ever; it takes its name when it is complete.

    Args:
        path: the file; an existing one is replaced.
        chunks: `[f, H, W, 3]` each, float in [0, 1] (clamped; NaN is black) or uint8.
        num_frames: in all chunks together.
        frame_rate: frames per second.
        metadata: a text: the comment of a GIF, the XMP packet of a WebP.
        quality: of a WebP, 0 to 100.

    Raises:
        MediaError: the file cannot be written, or there are no frames.
        OptionError: see `check_animation`.
        ShapeError: a chunk is not frames.
    """
    path = Path(path)
    check_animation(path, float(frame_rate), quality)
    memory = io.BytesIO()
    try:
        write_animation_to(
            memory, path.suffix.lower(), chunks, num_frames, frame_rate, metadata, quality
        )
    except MediaError as error:
        raise MediaError(f"cannot write '{path}': {error}") from error
    with OutputFile(path) as sink, sink.guard():
        sink.write(memory.getvalue())


def write_animation_to(
    memory: io.BytesIO,
    suffix: str,
    chunks: Iterable[Frames],
    num_frames: int,
    frame_rate: Fraction,
    metadata: str,
    quality: int | None = None,
) -> None:
    """As `write_animation`, into memory.

    Args:
        memory: takes the file.
        suffix: `.gif` or `.webp`.
        chunks, num_frames, frame_rate, metadata, quality: see there.

    Raises:
        MediaError: there are no frames.
        ShapeError: a chunk is not frames.
    """
    is_gif = suffix == ".gif"
    pictures = _pictures(chunks, palette=is_gif)
    first = next(pictures, None)
    if first is None:
        raise MediaError("no frames were given.")
    options: dict[str, Any] = {"comment": metadata.encode()} if is_gif else {
        "xmp": metadata.encode(), "quality": WEBP_QUALITY if quality is None else quality,
        "minimize_size": False,
    }  # fmt: skip
    first.save(
        memory,
        ANIMATION_FORMATS[suffix],
        save_all=True,
        append_images=pictures,
        duration=frame_times_ms(num_frames, frame_rate, 10 if is_gif else 1),
        loop=0,
        **options,
    )


def animation_text(tags: Mapping[Any, Any]) -> str:
    """What `write_animation` wrote as `metadata`, from what PIL says of a file; "" without one."""
    for name in ("comment", "xmp"):
        found = tags.get(name)
        if isinstance(found, bytes):
            return found.decode("utf-8", "replace")
    return ""


def _pictures(chunks: Iterable[Frames], *, palette: bool) -> Iterator[Image.Image]:
    for chunk in chunks:
        check_frames(chunk)
        pixels, _ = to_uint8(chunk)
        for frame in pixels:
            picture = Image.fromarray(frame)
            if palette:  # its own 256 colours, then dithered to them
                own = picture.quantize(256)
                picture = picture.quantize(palette=own, dither=Image.Dither.FLOYDSTEINBERG)
            yield picture
