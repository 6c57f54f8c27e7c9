"""A client's request, read: its files found, its fields checked, its limits kept."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ltx2rt.errors import Ltx2rtError, OptionError, Problem
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class, inputs_class, read_request
from ltx2rt.pipelines.request import Request
from ltx2rt.plain_data import to_plain, unknown_name
from ltx2rt.service.schema import REFUSED, REQUEST_SCHEMA
from ltx2rt.service.sources import Sources

PARTS = ("schema", "pipeline", "config", "guidance", "inputs", "preview")
DEFAULT_PIPELINE = "distilled"
_WHAT = "the request cannot be used"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made.

    Attributes:
        pipeline: its name.
        request: its files are this machine's.
        preview: steps between two previews; 0: none.
    """

    pipeline: str
    request: Request
    preview: int = 0

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON data, which `from_plain` reads again."""
        return {"pipeline": self.pipeline, "preview": self.preview, **to_plain(self.request)}

    @staticmethod
    def from_plain(data: Mapping[str, Any]) -> Order:
        """What `plain` wrote.

        Raises:
            OptionError: another version wrote it, and this one cannot read it.
        """
        request, problems = read_request(data["pipeline"], data)
        if request is None:
            raise OptionError(_WHAT, problems)
        return Order(pipeline=data["pipeline"], request=request, preview=data.get("preview", 0))


def read_order(data: Any, sources: Sources) -> Order:
    """What a client sent, checked as far as one can without a bundle.

    Args:
        data: JSON data, see `schema.request_schema`.
        sources: finds its files.

    Raises:
        OptionError: lists everything that is wrong.
    """
    if not isinstance(data, dict):
        raise OptionError(f"{_WHAT}: it is not an object")
    problems = [unknown_name(n, PARTS) for n in data if n not in PARTS]
    schema = data.get("schema", REQUEST_SCHEMA)
    if schema != REQUEST_SCHEMA or isinstance(schema, bool):
        problems.append(f"schema is {schema!r}; this server reads {REQUEST_SCHEMA}")
    name = data.get("pipeline", DEFAULT_PIPELINE)
    if not isinstance(name, str) or name not in PIPELINES:
        problems.append(f"pipeline {unknown_name(str(name), PIPELINES)}")
    config = data.get("config", {})
    if not isinstance(config, dict):
        problems.append("config is not an object")
    else:
        problems += [f"{n} cannot be used here: {w}" for n, w in REFUSED.items() if config.get(n)]
    for part in ("guidance", "inputs"):
        if not isinstance(data.get(part), dict | None):
            problems.append(f"{part} is not an object")
    preview = data.get("preview", 0)
    if isinstance(preview, bool) or not isinstance(preview, int) or preview < 0:
        problems.append(f"preview={preview!r:.40} is not a number of steps between two previews")
    if problems:
        raise OptionError(_WHAT, problems)
    cls = catalog_class(name)
    if problems := cls.named_problems(
        [f"guidance.{field}" for field in data.get("guidance") or ()]
    ):
        raise cls.refusal(problems)
    parts = {"config": config, "guidance": data.get("guidance"), "inputs": data.get("inputs")}
    kinds: dict[str, Any] = {**typing.get_type_hints(Request), "inputs": inputs_class(name)}
    finder = _Finder(sources, problems)
    plain = {part: finder.found(kinds[part], value, part) for part, value in parts.items()}
    if problems:
        raise OptionError(_WHAT, problems)
    request, problems = read_request(name, plain)
    if request is not None:
        problems = [*sources.limits.problems(request)]
    if request is None or problems:
        raise cls.refusal(problems)
    return Order(pipeline=name, request=request, preview=preview)


class _Finder:
    """Puts files into plain data where the type hints say that there is one."""

    def __init__(self, sources: Sources, problems: list[str]) -> None:
        self._sources = sources
        self._problems = problems

    def found(self, kind: Any, data: Any, where: str) -> Any:
        """`data` with paths for the texts that stand for files; what is mistyped stays."""
        kinds = typing.get_args(kind) if _is_union(kind) else (kind,)
        for one in kinds:
            if one is Path and isinstance(data, str):
                return self._named(self._sources.media, data, where)
            if isinstance(one, type) and dataclasses.is_dataclass(one) and isinstance(data, dict):
                return self._in_dataclass(one, data, where)
            if typing.get_origin(one) is tuple and isinstance(data, list):
                item = typing.get_args(one)[0]
                return [self.found(item, d, f"{where}[{i}]") for i, d in enumerate(data)]
        return data

    def _in_dataclass(self, kind: type[Any], data: dict[str, Any], where: str) -> dict[str, Any]:
        hints = typing.get_type_hints(kind)
        result = {
            name: self.found(hints[name], value, f"{where}.{name}") if name in hints else value
            for name, value in data.items()
        }
        if kind is Lora and isinstance(data.get("path"), str):
            result["path"] = self._named(self._sources.lora, data["path"], where)
        return result

    def _named(self, find: Callable[[str], str], text: str, where: str) -> str:
        try:
            return find(text)
        except Ltx2rtError as error:
            self._problems += [Problem(f"{where}: ", problem) for problem in error.problems]
            return text


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)
