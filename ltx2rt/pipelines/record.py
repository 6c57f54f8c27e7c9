"""What a clip was made from, as a file carries it: enough to make the same clip again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ltx2rt import __version__
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.catalog import PIPELINES, pipeline_class
from ltx2rt.pipelines.request import Request
from ltx2rt.plain_data import from_plain, parse_json, to_plain, unknown_name

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline

#: tag of media files, text chunk of PNG files, metadata of safetensors files
RECORD_TAG = "ltx2rt_record"
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


def record_of(pipeline: Pipeline, request: Request, stages: Mapping[str, Any]) -> Record:
    """The record of a clip."""
    return Record(
        pipeline=pipeline.name,
        request=request,
        max_batch_size=pipeline.runtime.max_batch_size,
        threads=pipeline.runtime.threads,
        bundle=pipeline.source.bundle_id,
        stages=stages,
    )


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
    cls, inputs = pipeline_class(name).Inputs, record.request.inputs
    if (cls is None) != (inputs is None):
        raise OptionError(
            f"{what}: the {name} pipeline takes {'no inputs' if cls is None else 'inputs'}."
        )
    if cls is None:
        return record
    request = replace(record.request, inputs=from_plain(cls, inputs, what))
    return replace(record, request=request)
