"""Locks on files and folders, which the system lets go however a process ends."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

#: whether folders can be locked, and locked files be renamed and removed
POSIX = sys.platform != "win32"


def try_lock(number: int) -> bool:
    """Lock an open file or folder; False if another holds it, or the file system has no locks."""
    try:
        _lock(number, wait=False)
    except OSError:
        return False
    return True


def wait_for_lock(number: int) -> None:
    """Lock an open file or folder once nobody else holds it; nothing where there are no locks."""
    with contextlib.suppress(OSError):
        _lock(number, wait=True)


def _lock(number: int, *, wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(number, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def is_still(path: Path, number: int) -> bool:
    """Whether an open file has this name; else it was removed or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except FileNotFoundError:
        return False


def open_folder(path: Path) -> int | None:
    """A folder, to lock it; None where systems cannot."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY) if sys.platform != "win32" else None
