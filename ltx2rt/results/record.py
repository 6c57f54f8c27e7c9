"""What a clip was made from, as a file carries it: enough to make the same clip again, and to see
that a file need not be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ltx2rt import __version__
from ltx2rt.errors import CheckpointError, MediaError, OptionError
from ltx2rt.media.animation import animation_text
from ltx2rt.media.files import ANIMATION_FORMATS, AUDIO_FORMATS, VIDEO_FORMATS
from ltx2rt.media.reader import read_tags
from ltx2rt.pipelines.catalog import PIPELINES, inputs_class
from ltx2rt.pipelines.request import Request
from ltx2rt.plain_data import from_plain, named_files, parse_json, to_plain, unknown_name
from ltx2rt.weights.safetensors import SafetensorsFile

#: tag of media files, text chunk of PNG files, metadata of safetensors files
RECORD_TAG = "ltx2rt_record"
#: files that carry a record
RECORD_SUFFIXES = (*VIDEO_FORMATS, *AUDIO_FORMATS, *ANIMATION_FORMATS, ".png", ".safetensors")
MAX_RECORD_CHARACTERS = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A request with every default filled in, and what made it.

    Attributes:
        pipeline: its name.
        request: what was asked for.
        max_batch_size: guidance passes that ran together: another number sums in another order.
        threads: CPU threads per engine, 0 for every core: another number may sum in another order.
        bundle: id of the bundle.
        version: of ltx2rt.
        stages: what every stage did: `sigmas`, `sampler` and `loras`; not needed to repeat it.
    """

    pipeline: str
    request: Request
    max_batch_size: int = 1
    threads: int = 0
    bundle: str = ""
    version: str = __version__
    stages: Mapping[str, Any] = field(default_factory=dict)


def plain_record(record: Record) -> dict[str, Any]:
    """A record as JSON data; paths are absolute."""
    plain: dict[str, Any] = to_plain(record)
    return plain


def record_text(record: Record) -> str:
    """A record as one line of JSON."""
    return json.dumps(plain_record(record), ensure_ascii=False, separators=(",", ":"))


def read_record(data: Any, where: str) -> Record:
    """Read a record: its text, or that text parsed.

    Args:
        data: text or JSON data.
        where: names its place in messages.

    Raises:
        OptionError: it is not a record, or lists everything in it that is wrong.
    """
    if isinstance(data, str):
        if len(data) > MAX_RECORD_CHARACTERS:
            raise OptionError(f"the record in {where} is longer than any that ltx2rt writes.")
        try:
            data = parse_json(data)
        except ValueError as error:
            raise OptionError(f"the record in {where} is damaged: {error}.") from error
    name = data.get("pipeline") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(name, str):
        raise OptionError(f"the record in {where} is damaged: it names no pipeline.")
    if name not in PIPELINES:
        raise OptionError(
            f"the record in {where} was made by another version: pipeline "
            f"{unknown_name(name, PIPELINES)}."
        )
    what = f"the record in {where} cannot be used"
    record = from_plain(Record, data, what)
    cls, inputs = inputs_class(name), record.request.inputs
    if (cls is None) != (inputs is None):
        raise OptionError(
            f"{what}: the {name} pipeline takes {'no inputs' if cls is None else 'inputs'}."
        )
    if cls is None:
        return record
    request = replace(record.request, inputs=from_plain(cls, inputs, what))
    return replace(record, request=request)


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
    elif suffix == ".png" or suffix in ANIMATION_FORMATS:
        tags = _picture_tags(path)
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


def _picture_tags(path: Path) -> dict[str, str]:
    try:
        with Image.open(path, formats=("PNG", *ANIMATION_FORMATS.values())) as image:
            found = dict(image.info)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise OptionError(f"cannot read {path}: {error}.") from error
    texts = {k: str(v) for k, v in found.items() if isinstance(k, str)}
    return (
        {**texts, "comment": animation_text(found)} if texts.keys() & {"comment", "xmp"} else texts
    )


def request_key(record: Record) -> dict[str, Any]:
    """Everything in a record that decides the latents, flat: `request.config.seed`, ..."""
    plain = plain_record(record)
    del plain["stages"], plain["threads"]  # a run may go on with more or fewer threads
    return flattened(plain)


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one: `{"a": {"b": 1}}` gives `{"a.b": 1}`; tuples become lists."""
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in flattened(inner, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: list(value) if isinstance(value, tuple) else value}


def is_made(path: Path, record: Record) -> bool:
    """Whether a file holds the record of this request and is newer than every file that the request
    names. One whose duration was automatic does not count: it holds the duration that was found.
    """
    try:
        found, wanted = request_key(record_in(path)), request_key(record)
    except (OptionError, MediaError, CheckpointError):  # it is absent, damaged, or not ours
        return False
    if record.request.config.tiling == "auto":  # the file names the tiles that were chosen
        found["request.config.tiling"] = "auto"
    made = path.stat().st_mtime_ns
    sources = [source for source in named_files(record.request) if source.exists()]
    return found == wanted and all(source.stat().st_mtime_ns < made for source in sources)
