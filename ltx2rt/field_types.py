"""Values of the wrong type, given to a dataclass by a program: one sentence instead of a traceback
later on.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from ltx2rt.errors import Field, OptionError, Problem

_NAMES: dict[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "True or False", Path: "a path",
}  # fmt: skip
_HINTS: dict[type[Any], Mapping[str, Any]] = {}

_SHOWN = 60  # characters of a value in a message


class _Misfit(Exception):
    """A value is not of a type."""


def settle_types(instance: Any) -> None:
    """Check the fields of a frozen dataclass against their type hints; the first thing that its
    `__post_init__` does. What means the same is taken: numpy's numbers, a list for a tuple, text
    for a path.

    Raises:
        OptionError: names every field whose value has another type.
    """
    problems = []
    for name, kind in _hints(type(instance)).items():
        value = getattr(instance, name)
        try:
            settled = _settled(value, kind)
        except _Misfit:
            shown = repr(value)
            shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
            problems.append(Problem(Field(name), f"={shown} is not {_described(kind)}"))
            continue
        if settled is not value:
            object.__setattr__(instance, name, settled)
    if problems:
        raise OptionError(f"{type(instance).__name__} takes other types", problems)


def _hints(kind: type[Any]) -> Mapping[str, Any]:
    """Resolved once a class."""
    if kind not in _HINTS:
        hints = typing.get_type_hints(kind)
        _HINTS[kind] = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    return _HINTS[kind]


def _settled(value: Any, kind: Any) -> Any:
    """The value as its type has it.

    Raises:
        _Misfit: it is of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _of_union(value, arguments)
    if origin is Literal:  # which values it may have is said by the class
        return _settled(value, type(arguments[0]))
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
            raise _Misfit
        kinds = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(value):
            raise _Misfit
        settled = tuple(_settled(v, k) for v, k in zip(value, kinds, strict=True))
        same = isinstance(value, tuple) and all(a is b for a, b in zip(settled, value, strict=True))
        return value if same else settled
    if kind is Path:
        if isinstance(value, Path) or not isinstance(value, str | os.PathLike):
            return _checked(value, Path)
        return Path(value)
    if kind in (int, float):
        return _number(value, kind)
    return _checked(value, origin or kind)


def _of_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        try:
            return _settled(value, kind)
        except _Misfit:
            continue
    raise _Misfit


def _number(value: Any, kind: type[int] | type[float]) -> Any:
    fits = isinstance(value, numbers.Integral if kind is int else numbers.Real)
    if isinstance(value, bool) or not fits:
        raise _Misfit
    if isinstance(value, int | float):
        return value
    return int(value) if kind is int else float(value)


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _Misfit
    return value


def _described(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("None" if k is type(None) else _described(k) for k in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        inner = [_described(k) for k in arguments if k is not ...]
        return f"a tuple of {', '.join(inner)}"
    name = getattr(origin or kind, "__name__", str(kind))
    return _NAMES.get(kind, f"{'an' if name[0] in 'AEIO' else 'a'} {name}")
