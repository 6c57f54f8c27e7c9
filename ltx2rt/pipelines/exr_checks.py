"""Which EXR files a request may name, and where those of a clip go (spec/media_io.md §6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ltx2rt.errors import MediaError, UnsupportedError
from ltx2rt.media.exr import exr_files, exr_size, is_exr, openexr

if TYPE_CHECKING:
    from ltx2rt.pipelines.request import Request


def exr_folder(path: str | Path) -> Path:
    """Where the EXR frames of a video file go."""
    path = Path(path)
    return path.with_name(f"{path.stem}_exr")


def exr_problems(request: Request, *, takes_hdr: bool) -> list[str]:
    """What is wrong with the images and the videos as far as dynamic range goes.

    Args:
        takes_hdr: whether the pipeline knows high dynamic range (`GenerationConfig.hdr`).
    """
    images = [image.path for image in request.config.images]
    videos = [reference.path for reference in getattr(request.inputs, "references", ())]
    if (source := getattr(request.inputs, "video", None)) is not None:
        videos.append(source)
    problems = [
        f"{path} is an EXR still; a video is a folder of them"
        for path in videos
        if is_exr(path) and not path.is_dir()
    ]
    problems += [
        f"{path} is a folder; an image is a single file" for path in images if path.is_dir()
    ]
    high = [path for path in (*images, *videos) if is_exr(path)]
    ordinary = [path for path in (*images, *videos) if not is_exr(path)]
    if high and not takes_hdr:
        return [*problems, f"{high[0]} is of high dynamic range, which it cannot read"]
    if high and request.config.hdr is None:
        problems.append(f"{high[0]} is of high dynamic range; say what it holds with hdr (--hdr)")
    if high and ordinary:
        problems.append(
            f"{high[0]} is of high dynamic range and {ordinary[0]} is not; use one kind"
        )
    if request.config.hdr is not None or high:
        problems += _unreadable(high)
    return problems


def _unreadable(paths: list[Path]) -> list[str]:
    try:
        openexr()
    except UnsupportedError as error:
        return [str(error)]
    problems = []
    for path in paths:
        try:
            exr_size(exr_files(path)[0] if path.is_dir() else path)
        except MediaError as error:
            problems.append(str(error))
    return problems
