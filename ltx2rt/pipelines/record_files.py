"""Read the record that a file made by ltx2rt carries."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ltx2rt.errors import OptionError
from ltx2rt.media.files import AUDIO_FORMATS, VIDEO_FORMATS
from ltx2rt.media.reader import read_tags
from ltx2rt.pipelines.record import RECORD_TAG, Record, read_record
from ltx2rt.weights.safetensors import SafetensorsFile

RECORD_SUFFIXES = (*VIDEO_FORMATS, *AUDIO_FORMATS, ".png", ".safetensors")


def record_in(path: str | Path) -> Record:
    """The record in a video, sound, PNG or safetensors file of ltx2rt.

    Raises:
        OptionError: the file has none, or it cannot be used.
        MediaError, CheckpointError: the file cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        tags = SafetensorsFile(path).metadata
    elif suffix == ".png":
        tags = _png_tags(path)
    else:
        tags = read_tags(path)
    comment = tags.get("comment", "")
    text = tags.get(RECORD_TAG) or (comment if comment.startswith("{") else None)
    if text is None:
        raise OptionError(
            f"{path} does not say how it was made: it was not written by ltx2rt, or its tags were "
            "removed; of frames saved as images the first one says it."
        )
    return read_record(text, str(path))


def _png_tags(path: Path) -> dict[str, str]:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            found = dict(image.info)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise OptionError(f"cannot read {path}: {error}.") from error
    return {k: str(v) for k, v in found.items() if isinstance(k, str)}
