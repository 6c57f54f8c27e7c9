"""What a clip was made from, as a file carries it: enough to make the same clip again, and to see
that a file need not be made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltx2rt import __version__
from ltx2rt.config import RecordPaths
from ltx2rt.errors import CheckpointError, MediaError, OptionError
from ltx2rt.media.animation import animation_text
from ltx2rt.media.files import ANIMATION_FORMATS, AUDIO_FORMATS, VIDEO_FORMATS
from ltx2rt.media.reader import read_tags
from ltx2rt.media.still_reader import IMAGE_ERRORS, opened_image
from ltx2rt.media.whole import is_finished
from ltx2rt.pipelines.catalog import PIPELINES, inputs_class
from ltx2rt.pipelines.request import Request
from ltx2rt.plain_data import (
    absolute_path,
    from_plain,
    named_files,
    parse_json,
    to_plain,
    unknown_name,
    with_paths,
)
from ltx2rt.weights.safetensors import SafetensorsFile

#: tag of media files, text chunk of PNG files, metadata of safetensors files
RECORD_TAG = "ltx2rt_record"
#: files that carry a record
RECORD_SUFFIXES = (*VIDEO_FORMATS, *AUDIO_FORMATS, *ANIMATION_FORMATS, ".png", ".safetensors")
MAX_RECORD_CHARACTERS = 16_000_000
#: of a folder of frames, the one that carries the record
FIRST_FRAME = "frame_00000.png"
#: what a record says of a path that it shall not name
NO_PATH = "path-not-recorded"
#: formats that tell whether a file was finished
BOXED_FORMATS = (".mp4", ".mov", ".m4a")
_SHOWN = 5  # differences named in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A request with every default filled in, and what made it.

    Attributes:
        pipeline: its name.
        request: what was asked for.
        max_batch_size: guidance passes that ran together: another number sums in another order.
        threads: CPU threads per engine, 0 for every core: another number may sum in another order.
        kernels: when TensorRT-RTX made kernels: others may round otherwise.
        bundle: id of the bundle.
        version: of ltx2rt.
        stages: what every stage did: `sigmas`, `sampler` and `loras`; not needed to repeat it.
    """

    pipeline: str
    request: Request
    max_batch_size: int = 1
    threads: int = 0
    kernels: str = "eager"
    bundle: str = ""
    version: str = __version__
    stages: Mapping[str, Any] = field(default_factory=dict)


def plain_record(record: Record) -> dict[str, Any]:
    """A record as JSON data; paths are absolute."""
    plain: dict[str, Any] = to_plain(record)
    return plain


def record_text(record: Record, told: Callable[[Path], str] = str) -> str:
    """A record as one line of JSON.

    Args:
        record: what a file was made from.
        told: how it writes paths, see `path_teller`.
    """
    plain = to_plain(record, told)
    for facts in plain["stages"].values():
        if isinstance(facts, dict) and isinstance(facts.get("loras"), list):
            facts["loras"] = [
                told_lora(text, lambda path: told(absolute_path(path))) for text in facts["loras"]
            ]
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return json.dumps(plain, separators=(",", ":"))  # a path that is not UTF-8


def told_lora(text: str, told: Callable[[Path], str]) -> str:
    """`FILE:STRENGTH` with its path as a record writes it."""
    path, _, strength = text.rpartition(":")
    return f"{told(Path(path))}:{strength}"


def path_teller(how: RecordPaths, folder: Path) -> Callable[[Path], str]:
    """How a file in `folder` writes the paths of what it was made from."""
    if how == "absolute":
        return str
    if how == "none":
        return lambda _: NO_PATH
    base = os.path.realpath(folder)

    def relative(path: Path) -> str:
        try:
            return os.path.relpath(path, base)
        except ValueError:  # another drive
            return str(path)

    return relative


def read_record(data: Any, where: str, folder: Path | None = None) -> Record:
    """Read a record: its text, or that text parsed.

    Args:
        data: text or JSON data.
        where: names its place in messages.
        folder: what its paths are relative to; default: the current one.

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
    request = record.request
    if cls is not None:
        request = replace(request, inputs=from_plain(cls, inputs, what))
    if folder is not None:
        base = Path(os.path.realpath(folder))
        request = with_paths(request, lambda path: Path(os.path.normpath(base / path)))
        record = replace(record, stages=_stages_in(record.stages, base))
    return replace(record, request=request)


def _stages_in(stages: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """What stages did, the paths of their LoRAs absolute."""
    found = {}
    for name, facts in stages.items():
        if isinstance(facts, dict) and isinstance(loras := facts.get("loras"), list):
            told = [told_lora(t, lambda p: os.path.normpath(base / p)) for t in map(str, loras)]
            facts = {**facts, "loras": told}
        found[name] = facts
    return found


def record_in(path: str | Path) -> Record:
    """The record in a video, sound, PNG or safetensors file of ltx2rt.

    ```python
    clip.save("out.mp4")
    request = ltx2rt.record_in("out.mp4").request
    again = pipe(request.config, request.guidance, request.inputs)
    ```

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
    return read_record(text, str(path), path.parent)


def _picture_tags(path: Path) -> dict[str, str]:
    try:
        with opened_image(path, ("PNG", *ANIMATION_FORMATS.values())) as image:
            found = dict(image.info)
    except IMAGE_ERRORS as error:
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


def reasons_to_make(path: Path, record: Record) -> list[str]:
    """Why a file, or a folder of PNG frames, has to be made (again); empty if it need not: it is
    finished, holds the record of this request and is newer than every file that the request names.
    One whose duration was automatic does not count: it holds the duration that was found.
    """
    if not path.exists():
        return ["it is not there"]
    try:
        found = request_key(record_in(path / FIRST_FRAME if path.is_dir() else path))
    except (OptionError, MediaError, CheckpointError):
        return ["it does not say how it was made"]
    if path.suffix.lower() in BOXED_FORMATS and not is_finished(path):
        return ["it was not finished"]
    if record.request.config.tiling == "auto":  # the file names the tiles that were chosen
        found["request.config.tiling"] = "auto"
    made = path.stat().st_mtime_ns
    newer = [
        f"{source} is newer"
        for source in named_files(record.request)
        if source.exists() and source.stat().st_mtime_ns >= made
    ]
    return changes(found, request_key(record)) + newer


def changes(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """How two requests differ (see `request_key`), the first few differences."""
    names = [n for n in sorted({*kept, *asked}) if kept.get(n) != asked.get(n)]
    found = [
        f"{n.removeprefix('request.')} was {_short(kept.get(n))}, now it is {_short(asked.get(n))}"
        for n in names[:_SHOWN]
    ]
    return found + [f"and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
