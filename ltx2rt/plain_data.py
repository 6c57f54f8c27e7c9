"""Frozen dataclasses as plain JSON data and back, driven by their type hints.

Understood are str, int, float, bool, None, `Path`, `Literal`, unions, tuples, string- or
number-keyed mappings and dataclasses of these. Reading is strict: unknown, missing and mistyped
entries are all named, and the dataclasses check their values themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ltx2rt.errors import BundleError, Ltx2rtError, OptionError, Problem
from ltx2rt.user_files import read_limited

T = TypeVar("T")

_HINTS: dict[type[Any], dict[str, Any]] = {}

#: a manifest of a real model has a few MB
MAX_DOCUMENT_BYTES = 256_000_000

_SHOWN = 60  # characters of a bad value in a message


def absolute_path(path: str | Path) -> Path:
    """A path that does not depend on the current folder, and has no `..` in it."""
    whole = Path(path).absolute()
    return Path(os.path.realpath(whole)) if ".." in whole.parts else whole


def to_plain(value: Any, told: Callable[[Path], str] = str) -> Any:
    """JSON data of a dataclass, tuple, mapping or scalar.

    Args:
        value: what is written.
        told: how the absolute form of a path is written: of a `Path`, and of a text field that is
            called `path`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name), told) for f in dataclasses.fields(value)}
        if isinstance(path := getattr(value, "path", None), str):
            plain["path"] = told(absolute_path(path))
        return plain
    if isinstance(value, Path):
        return told(absolute_path(value))
    if isinstance(value, Mapping):
        return {str(k): to_plain(v, told) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v, told) for v in value]
    return value


def with_paths(value: Any, change: Callable[[Path], Path]) -> Any:
    """The same data with other paths: those that `to_plain` would write."""
    if isinstance(value, Path):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(with_paths(item, change) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        is_path = field.name == "path" and isinstance(old, str)
        new = str(change(Path(old))) if is_path else with_paths(old, change)
        if new != old:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value


def from_plain(kind: type[T], data: Any, what: str) -> T:
    """The dataclass `kind` from JSON data.

    Args:
        kind: a dataclass.
        data: an object with its fields; those with a default may be left out.
        what: names the data in a message.

    Raises:
        OptionError: lists everything that is wrong.
    """
    value, problems = read_plain(kind, data)
    if value is None:
        raise OptionError(what, problems)
    return value


def read_plain(kind: type[T], data: Any, where: str = "") -> tuple[T | None, list[str]]:
    """As `from_plain`, but gives the problems back; None if there are any. `where` names the data
    in them.
    """
    problems: list[str] = []
    value = _read(kind, data, where, problems)
    return (None if problems else typing.cast(T, value)), problems


def write_document(data: Any, path: Path) -> None:
    """Write JSON data atomically, in an order that does not change."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def read_document(
    kind: type[T],
    path: Path,
    schema: int,
    *,
    where: str,
    missing: str,
    again: str,
    check: Callable[[dict[str, Any]], list[str]] = lambda _: [],
) -> T:
    """A dataclass from a JSON file of ours.

    Args:
        kind: the dataclass; it has a field `schema`.
        schema: the one that is read.
        where: names the data in a list of problems.
        missing: says what it means that there is no such file.
        again: says how to make it anew.
        check: what else is wrong with the JSON data.

    Raises:
        BundleError: no such file, another schema, or fields that do not fit (all listed).
    """
    try:
        data = parse_json(read_limited(path, MAX_DOCUMENT_BYTES).decode("utf-8"))
    except FileNotFoundError as error:
        raise BundleError(missing) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}. {again}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise BundleError(
            f"{path} has schema {found!r}; this version of ltx2rt reads schema {schema}. {again}"
        )
    value, problems = read_plain(kind, data, where)
    problems += check(data) if value is not None else []
    if value is None or problems:
        raise BundleError(f"{path} is not valid", problems[:20], again)
    return value


def parse_json(text: str) -> Any:
    """JSON without repeated keys, NaN or infinity.

    Raises:
        ValueError: says what is wrong.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unknown_name(name: str, known: Iterable[str], where: str = "") -> str:
    """`'sead' is unknown; did you mean 'seed'?`, or `x has an unknown option 'sead'; did ...`."""
    hint, shown = nearest(name, known), repr(name[:_SHOWN])
    return f"{where} has an unknown option {shown}{hint}" if where else f"{shown} is unknown{hint}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'seed'?`, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _read(kind: Any, data: Any, where: str, problems: list[str]) -> Any:
    """`data` as `kind`; what does not fit is added to `problems`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, where, problems)
    if origin is Literal:
        if any(type(data) is type(a) and data == a for a in arguments):
            return data
        return _wrong(f"one of {', '.join(map(str, arguments))}", data, where, problems)
    if origin is tuple:
        return _read_tuple(arguments, data, where, problems)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            return _wrong("an object", data, where, problems)
        return _read_mapping(arguments, data, where, problems)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where, problems)
    if kind is Any:
        return data
    if kind is float and type(data) is int:
        return float(data) if abs(data) < 2**53 else _wrong("a number", data, where, problems)
    if kind is Path:
        if isinstance(data, str) and data and "\0" not in data:
            return Path(data)
        return _wrong("a path", data, where, problems)
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if kind in names and type(data) is kind:  # bool is an int to Python
        return data
    if kind is type(None) and data is None:
        return None
    return _wrong(names.get(kind, "null"), data, where, problems)


def _wrong(expected: str, data: Any, where: str, problems: list[str]) -> None:
    shown = repr(data)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    problems.append(f"{where or 'the record'} is {shown}; expected {expected}")


def _read_union(kinds: tuple[Any, ...], data: Any, where: str, problems: list[str]) -> Any:
    """The first member that fits; the messages of the last one (the innermost) if none does."""
    if data is None and type(None) in kinds:
        return None
    tried: list[str] = []
    for kind in (k for k in kinds if k is not type(None)):
        tried = []
        value = _read(kind, data, where, tried)
        if not tried:
            return value
    problems += tried
    return None


def _read_tuple(kinds: tuple[Any, ...], data: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(data, list):
        return _wrong("a list", data, where, problems)
    if kinds[1:] == (...,):
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        return _wrong(f"a list of {len(kinds)}", data, where, problems)
    pairs = zip(kinds, data, strict=True)
    return tuple(_read(k, d, f"{where}[{i}]", problems) for i, (k, d) in enumerate(pairs))


def _read_mapping(
    kinds: tuple[Any, ...], data: dict[str, Any], where: str, problems: list[str]
) -> dict[Any, Any]:
    found = {}
    for name, item in data.items():
        key: Any = name
        if kinds[0] in (int, float):
            try:
                key = kinds[0](name)
            except ValueError:
                _wrong("a number as key", name, where, problems)
                continue
        found[key] = _read(kinds[1], item, f"{where}.{name}" if where else name, problems)
    return found


def _type_hints(kind: type[Any]) -> dict[str, Any]:
    """Resolved once a class: the manifest of a real model has thousands of entries of a few."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def _read_dataclass(kind: type[Any], data: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(data, dict):
        return _wrong("an object", data, where, problems)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    hints = _type_hints(kind)
    before = len(problems)
    problems += [unknown_name(n, fields, where) for n in data if n not in fields]
    values = {}
    for name, field in fields.items():
        if name in data:
            place = f"{where}.{name}" if where else name
            values[name] = _read(hints[name], data[name], place, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where} lacks {name!r}" if where else f"{name!r} is missing")
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except Ltx2rtError as error:
        problems += [p.inside(where) if isinstance(p, Problem) else p for p in error.problems]
        return None


def named_files(value: Any) -> Iterator[Path]:
    """Every file that a dataclass or a sequence of them names: paths, and text in a field `path`;
    absolute.
    """
    if isinstance(value, Path):
        yield absolute_path(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            is_path = field.name == "path" and isinstance(inner, str)
            yield from named_files(Path(inner) if is_path else inner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from named_files(item)
