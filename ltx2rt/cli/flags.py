"""A flag: how text of the command line, or a value of a job, becomes plain data of a request.

What a flag holds is the same wherever it comes from, and is JSON: a job written from a command line
reads as that command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltx2rt.cli.common import text_or_file
from ltx2rt.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag of `ltx2rt generate`.

    Attributes:
        name: as typed, `--lora`; a job calls it `lora`.
        places: of the fields that it sets: `config.loras`, `guidance.video.cfg_scale`.
        help: one line.
        group: title under which the help shows it.
        read: what the flag holds -> plain data of the field; where it sets several fields to
            different values, a tuple of them, in the order of `places`, and `spread` is true.
        convert: text -> one value.
        action: `append` may be repeated; `extend` too, and `convert` gives a list; `store_true`
            takes no value.
        count: values of one occurrence, as argparse's `nargs`.
        choices: values that are allowed; empty: any.
        is_path: its value begins with a path.
        metavar: what the help calls its values.
        aliases: further names.
        spread: see `read`.
    """

    name: str
    places: tuple[str, ...]
    help: str
    group: str = ""
    read: Callable[[Any], Any] = lambda value: value
    convert: Callable[[str], Any] = str
    action: Literal["store", "append", "extend", "store_true"] = "store"
    count: int | str | None = None
    choices: tuple[str, ...] = ()
    is_path: bool = False
    metavar: str | tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    spread: bool = False

    @property
    def key(self) -> str:
        """Its name in jobs."""
        return key_of(self.name)

    @property
    def names(self) -> list[str]:
        """All that may be typed, the shortest first."""
        return sorted((self.name, *self.aliases), key=len)

    def arguments(self) -> dict[str, Any]:
        """Of `add_argument`, besides the names; it holds None where it is not given."""
        value: dict[str, Any] = {}
        if self.action != "store_true":
            value = {"type": self.convert, "nargs": self.count, "metavar": self.metavar}
            value["choices"] = self.choices or None
        shown = self.help.replace("%", "%%")
        return {"dest": self.key, "action": self.action, "default": None, "help": shown, **value}

    def of_job(self, value: Any, folder: Path) -> Any:
        """What it holds for a value in a job; None where that does not set it.

        Args:
            folder: what paths are relative to.

        Raises:
            OptionError, ValueError, argparse.ArgumentTypeError: the value does not fit.
        """
        if self.action == "store_true":
            if type(value) is not bool:
                raise OptionError(f"{_shown(value)} is not true or false")
            return value or None
        if self.action == "store" and self.count is None:
            return self._one(value, folder)
        if self.action == "store" and not isinstance(value, list):
            raise OptionError(f"{_shown(value)} is not a list")
        found = [self._one(v, folder) for v in (value if isinstance(value, list) else [value])]
        if isinstance(self.count, int) and len(found) != self.count:
            raise OptionError(f"{len(found)} values, expected {self.count}")
        if self.count == "+" and not found:
            raise OptionError("the list is empty")
        if self.action == "extend":
            return [part for item in found for part in item] or None
        return found

    def _one(self, value: Any, folder: Path) -> Any:
        kinds: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float)}
        allowed = kinds.get(self.convert, (str, int, float))
        if isinstance(value, bool) or not isinstance(value, allowed):
            names: dict[Any, str] = {int: "a whole number", float: "a number"}
            raise OptionError(f"{_shown(value)} is not {names.get(self.convert, 'text')}")
        text = value if isinstance(value, str) else repr(value)
        if "\0" in text or (self.is_path and not _is_path(text)):
            raise OptionError(f"{_shown(value)} is not a {'path' if self.is_path else 'text'}")
        if not self.is_path and not _is_text(text):
            raise OptionError(f"{_shown(value)} is not valid UTF-8 text")
        found = self.convert(self._from(folder, text))
        if self.choices and found not in self.choices:
            raise OptionError(f"{_shown(value)}; allowed: {', '.join(self.choices)}")
        return found

    def values(self, held: Any, places: Sequence[str]) -> dict[str, Any]:
        """Place -> plain data, for what it holds.

        Raises:
            OptionError: the text says nothing that it could.
        """
        data = self.read(held)
        if not self.spread:
            return dict.fromkeys(places, data)
        found = dict(zip(self.places, data, strict=True))
        return {place: found[place] for place in places}

    def absolute(self, value: Any) -> Any:
        """What it holds, with paths that do not depend on the current folder."""
        if isinstance(value, list):
            return [self.absolute(item) for item in value]
        if self.convert is text_or_file:
            return f"@{value}" if value.startswith("@") else value
        return self._from(Path.cwd(), value) if isinstance(value, str) else value

    def _from(self, folder: Path, text: str) -> str:
        if self.convert is text_or_file and text.startswith("@") and not text.startswith("@@"):
            return f"@{folder / text[1:]}"
        return str(folder / text) if self.is_path and text != "-" else text


def key_of(name: str) -> str:
    """`frame_rate` for `--frame-rate` and `frame-rate`."""
    return name.removeprefix("--").replace("-", "_")


def _is_path(text: str) -> bool:
    """Whether a file can have this name: what is no character may stand for a byte of it."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return bool(text)


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
