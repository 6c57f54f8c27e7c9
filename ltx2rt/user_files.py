"""Open any file that a user or a bundle names: a regular one, whose size is looked at first."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from ltx2rt.errors import OptionError


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; pipes and devices, which may block or never end, are refused.

    Raises:
        OSError: it cannot be opened.
        ValueError: its name cannot be that of a file; or it is not a regular one.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags)  # a pipe would wait for its writer
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise ValueError("it is not a file but a pipe or device")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: see `open_regular`; or it is larger.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is too large: more than {limit} bytes")
    return data


def read_user_file(path: Path, limit: int) -> bytes:
    """As `read_limited`.

    Raises:
        OptionError: one sentence about what is wrong.
    """
    try:
        return read_limited(path, limit)
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise OptionError(f"cannot read {str(path)!r}: {error}.") from error


def read_user_text(path: Path, limit: int) -> str:
    """As `read_user_file`, UTF-8 text."""
    try:
        return read_user_file(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"cannot read {path}: it is not UTF-8 text.") from error
