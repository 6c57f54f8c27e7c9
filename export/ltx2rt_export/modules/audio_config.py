"""Configuration of the audio parts: tensors decide the structure, metadata must agree."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex


def section(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A nested object of the metadata; {} when any level of it is missing or null."""
    for key in path:
        config = config.get(key) or {}
    return config


def shape_of(tensors: TensorIndex, name: str, where: str) -> tuple[int, ...]:
    """Shape of a tensor that must exist.

    Raises:
        CheckpointError: the checkpoint does not hold it.
    """
    if name not in tensors:
        raise CheckpointError(
            f"{where} is not complete: {name} is missing; use a file that holds it."
        )
    return tensors[name].shape


def count(tensors: Collection[str], pattern: str) -> int:
    """Number of different values of the pattern's first group among the names that match."""
    expression = re.compile(pattern)
    return len({m.group(1) for m in map(expression.match, tensors) if m})


def agree(
    problems: list[str], config: Mapping[str, Any], where: str, expected: Mapping[str, Any]
) -> None:
    """Note every key of `expected` that `config` sets to another value; missing keys are fine."""
    for key, value in expected.items():
        if config.get(key) is not None and plain(config[key]) != plain(value):
            problems.append(
                f"{where}.{key} is {config[key]!r}, but this model needs {plain(value)!r}"
            )


def plain(value: Any) -> Any:
    """Lists for every sequence, so that JSON values compare with tuples."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return value


def refuse_unused(
    names: Collection[str],
    tensors: TensorIndex,
    where: str,
    prefix: str = "",
    unused: Collection[str] = (),
) -> None:
    """Refuse a checkpoint that holds more than a module computes with.

    Args:
        names: the module's state-dict names; these and `unused` are all that may exist.
        tensors: the checkpoint's tensors.
        where: how the message names this part.
        prefix: only names that start with it are looked at.
        unused: names that are known to take no part in the computation.

    Raises:
        UnsupportedError: with the first five names.
    """
    if extra := unused_names(names, tensors, prefix, unused):
        shown = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
        raise UnsupportedError(
            f"{where} holds tensors of a variant that is not supported: {shown}."
        )


def unused_names(
    names: Collection[str], tensors: TensorIndex, prefix: str = "", unused: Collection[str] = ()
) -> list[str]:
    """What `refuse_unused` refuses."""
    known = {*names, *unused}
    return sorted(n for n in tensors if n.startswith(prefix) and n not in known)
