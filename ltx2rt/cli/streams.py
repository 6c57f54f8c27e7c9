"""Standard streams that hold: closed ones are filled in, and nothing printed steers a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

#: what moves the cursor, changes colours or turns text around, as JSON writes it
_CONTROL = {
    code: f"\\u{code:04x}"
    for code in (
        *(c for c in range(0x20) if chr(c) not in "\n\t"),
        *range(0x7F, 0xA0),
        0x061C, 0x200E, 0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
}  # fmt: skip


class PlainStream:
    """A text stream that escapes control characters and what its encoding lacks: names and messages
    of files and peers are printed, never obeyed. A return to the line's start goes through where a
    text begins with it, as progress does.

    Args:
        stream: where text goes; None: it was closed, and what is written is lost.
        may_fail: an error is no reason to stop: nobody reads progress any more.
    """

    def __init__(self, stream: TextIO | None, *, may_fail: bool = False) -> None:
        self.was_closed = stream is None
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: PTH123
        self._may_fail = may_fail

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""
        plain = start + text[len(start) :].translate(_CONTROL)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        plain = plain.encode(encoding, "backslashreplace").decode(encoding)
        with self._errors():
            self._stream.write(plain)
        return len(text)

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        if self._may_fail:
            return contextlib.suppress(OSError, ValueError)
        return contextlib.nullcontext()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """Standard output and standard error are `PlainStream`s inside."""
    _fill_closed()
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, PlainStream(before[0]))
    sys.stderr = cast(TextIO, PlainStream(before[1], may_fail=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _fill_closed() -> None:
    """Open what stands for a closed standard stream: else the next file takes its number, and what
    libraries print goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
