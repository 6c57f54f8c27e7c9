"""Job files: the flags of a command in a JSON or TOML file, or in a file that ltx2rt made.

A job's keys are the flags' names, with underscores or dashes; paths in it are relative to the
file. `record` (JSON only) holds a whole request as media files carry it; flags change parts of it.
A flag names a path if its type is `Path` or its metavar begins with FILE or DIR.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.cli.common import text_or_file
from ltx2rt.errors import OptionError, join_problems
from ltx2rt.plain_data import parse_json, unknown_name
from ltx2rt.results.record import Record, plain_record, read_record

MAX_JOB_BYTES = 16_000_000
RECORD_KEY = "record"
#: flags that a job does not hold
_OUTSIDE = {"help", "job", "dump_job"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The flags of a command, by job key."""

    actions: Mapping[str, argparse.Action]

    @classmethod
    def of(cls, parser: argparse.ArgumentParser) -> Flags:
        """The flags of a parser that may stand in a job."""
        found = {
            option[2:].replace("-", "_"): action
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        }
        return cls(actions={k: a for k, a in found.items() if k not in _OUTSIDE})


def complete(
    options: argparse.Namespace, path: Path | None, flags: Flags
) -> tuple[argparse.Namespace, Record | None]:
    """The options with those of a job file where the command line gives none, and its record.

    Raises:
        OptionError: lists everything that is wrong in the file.
    """
    from ltx2rt.results.record import RECORD_SUFFIXES, record_in

    if path is None:
        return options, None
    if path.suffix.lower() in RECORD_SUFFIXES:
        return options, record_in(path)
    job = read_job(path)
    return with_job(options, job, path.absolute().parent, flags, str(path))


def with_job(
    options: argparse.Namespace, job: Mapping[str, Any], folder: Path, flags: Flags, where: str
) -> tuple[argparse.Namespace, Record | None]:
    """As `complete`, for a job that was read.

    Args:
        folder: what paths in the job are relative to.
        where: names the job in messages.
    """
    values, problems = {}, []
    record = None
    for name, value in job.items():
        key = name.replace("-", "_")
        if key == RECORD_KEY:
            try:
                record = read_record(value, where)
            except OptionError as error:
                problems.append(str(error))
            continue
        action = flags.actions.get(key)
        if action is None:
            problems.append(unknown_name(name, [*flags.actions, RECORD_KEY]))
            continue
        try:
            values[action.dest] = _value(action, value, folder)
        except (OptionError, ValueError, argparse.ArgumentTypeError) as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise OptionError(join_problems(f"{where} cannot be used as a job", problems))
    given = {k: v for k, v in vars(options).items() if v is not None}
    return argparse.Namespace(**{**vars(options), **values, **given}), record


def read_job(path: Path) -> dict[str, Any]:
    """The table in a JSON or TOML file.

    Raises:
        OptionError: it cannot be read, is not JSON or TOML, or holds no table.
    """
    from ltx2rt.results.record import RECORD_SUFFIXES

    kind = path.suffix.lower()
    if kind not in (".json", ".toml"):
        raise OptionError(
            f"{path} is not a job: name a .json or .toml file, or a file that ltx2rt made "
            f"({', '.join(RECORD_SUFFIXES)})."
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JOB_BYTES + 1)
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:  # a name with a NUL
        raise OptionError(f"cannot read {str(path)!r}: {error}.") from error
    if len(data) > MAX_JOB_BYTES:
        raise OptionError(f"{path} is too large for a job: more than {MAX_JOB_BYTES} bytes.")
    try:
        text = data.decode("utf-8")
        job = tomllib.loads(text) if kind == ".toml" else parse_json(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not {kind[1:].upper()}: {error}.") from error
    if not isinstance(job, dict):
        raise OptionError(f"{path} holds no table of flags.")
    return job


def dump_job(path: Path, options: argparse.Namespace, record: Record | None, flags: Flags) -> None:
    """Write the given options as a job; paths become absolute."""
    job: dict[str, Any] = {} if record is None else {RECORD_KEY: plain_record(record)}
    for key, action in flags.actions.items():
        value = getattr(options, action.dest, None)
        if value is not None and (action.nargs != 0 or value == action.const):
            job[key] = _plain(action, value)
    path.write_text(json.dumps(job, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain(action: argparse.Action, value: Any) -> Any:
    """A parsed value as a job holds it."""
    if action.nargs == 0:
        return True
    if isinstance(action, argparse._AppendAction):
        return [_plain_item(action, item) for item in value]
    return _plain_item(action, value)


def _plain_item(action: argparse.Action, item: Any) -> Any:
    if isinstance(item, list | tuple):
        return [_plain_item(action, v) if i == 0 else v for i, v in enumerate(item)]
    if _names_path(action) and str(item) != "-":
        return str(Path(item).absolute())
    return item


def _value(action: argparse.Action, value: Any, folder: Path) -> Any:
    """A job's value as the command line would give it."""
    if action.nargs == 0:
        if type(value) is not bool:
            raise OptionError(f"{_shown(value)} is not true or false")
        return action.const if value else None
    if isinstance(action, argparse._AppendAction):
        items = value if isinstance(value, list) else [value]
        if action.nargs is not None and items and not isinstance(items[0], list):
            items = [items]
        read = [_item(action, item, folder) for item in items]
        extends = isinstance(action, argparse._ExtendAction)
        return [part for item in read for part in item] if extends else read
    return _item(action, value, folder)


def _item(action: argparse.Action, value: Any, folder: Path) -> Any:
    """One occurrence of a flag."""
    if action.nargs is None:
        return _scalar(action, value, folder)
    if not isinstance(value, list):
        raise OptionError(f"{_shown(value)} is not a list")
    if isinstance(action.nargs, int) and len(value) != action.nargs:
        raise OptionError(f"{len(value)} values, expected {action.nargs}")
    if action.nargs == "+" and not value:
        raise OptionError("the list is empty")
    path_first = _names_path(action)
    return [
        _scalar(action, item, folder if path_first and index == 0 else None)
        for index, item in enumerate(value)
    ]


def _scalar(action: argparse.Action, value: Any, folder: Path | None) -> Any:
    convert: Any = action.type or str
    allowed: tuple[type, ...] = {int: (int,), float: (int, float)}.get(convert, (str, int, float))
    if isinstance(value, bool) or not isinstance(value, allowed):
        names = {int: "a whole number", float: "a number"}
        raise OptionError(f"{_shown(value)} is not {names.get(convert, 'text')}")
    text = value if isinstance(value, str) else repr(value)
    if folder is not None and _names_path(action) and text != "-":
        if "\0" in text:
            raise OptionError(f"{_shown(value)} is not a path")
        text = text if Path(text).is_absolute() else str(folder / text)
    if folder is not None and convert is text_or_file and text.startswith("@"):
        text = f"@{folder / text[1:]}"
    found = convert(text)
    if action.choices is not None and found not in action.choices:
        raise OptionError(f"{_shown(value)}; allowed: {', '.join(map(str, action.choices))}")
    return found


def _names_path(action: argparse.Action) -> bool:
    metavar = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
    return action.type is Path or (metavar or "").startswith(("FILE", "DIR"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
