"""Files and folders that get their name only when they are complete; what killed runs left of them
is removed.

A part lies beside its target, is called after it, and is locked by who writes it. The system lets a
lock go however a process ends, so a part that nobody holds is a leftover.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ltx2rt.locks import POSIX, is_still, open_folder, try_lock, wait_for_lock

_PREFIX, _SUFFIX = ".ltx2rt-", ".part"


class Partial:
    """The part of a file or a folder: a context manager, which commits it, or, after any exception,
    removes it. What killed runs left of the same target goes first.

    Args:
        target: what it becomes; links in it are not followed. Its folder must exist.
        folder: it is a folder, which may replace an empty one.
        buffering: of `file`.
        mode: permissions, cut by the umask.

    Attributes:
        path: where the part is.
        file: open for writing and reading; a folder has none.

    Raises:
        OSError: it cannot be created.
    """

    file: BinaryIO

    def __init__(
        self, target: Path, *, folder: bool = False, buffering: int = -1, mode: int = 0o666
    ) -> None:
        remove_leftovers(target)
        self.target = target
        self.is_folder = folder
        self._buffering, self._mode = buffering, mode
        while not self._made():
            pass

    def _made(self) -> bool:
        """Make the part and lock it; False if another run took it for a leftover between both."""
        self.path = self.target.with_name(f"{_stem(self.target)}{secrets.token_hex(4)}{_SUFFIX}")
        self._lock: int | None = None
        if self.is_folder:
            self.path.mkdir()
            held = self._lock = open_folder(self.path)
        else:
            binary = getattr(os, "O_BINARY", 0)
            held = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | binary, self._mode)
            self.file = os.fdopen(held, "wb+", self._buffering)
        if held is None or not POSIX:
            return True
        wait_for_lock(held)
        if is_still(self.path, held):
            return True
        self._close()
        return False

    def commit(self) -> None:
        """Give the finished part its name.

        Raises:
            OSError: the disk is full, or the target cannot be replaced.
        """
        if self.is_folder:
            if self.target.exists():
                self.target.rmdir()
            self.path.rename(self.target)
            self._close()
            return
        self.file.flush()
        os.fsync(self.file.fileno())  # else a power cut may leave an empty file of that name
        if not POSIX:  # where open files cannot be renamed
            self._close()
        self.path.replace(self.target)
        self._close()

    def discard(self) -> None:
        """Remove the part; nothing after `commit`."""
        with contextlib.suppress(OSError):
            self._close()
        _remove(self.path)

    def _close(self) -> None:
        if not self.is_folder:
            self.file.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs left of one target."""
    _remove_unheld(target.parent, _stem(target))


def remove_all_leftovers(folder: Path) -> None:
    """Remove what killed runs left of any target in a folder, which need not exist."""
    _remove_unheld(folder, _PREFIX)


def hold_folder(path: Path) -> int | None:
    """Lock a folder of ours until the process ends or `os.close`; None where systems cannot."""
    lock = open_folder(path)
    if lock is not None:
        try_lock(lock)
    return lock


def remove_unheld_folders(parent: Path, prefix: str) -> None:
    """Remove folders whose names begin so and that nobody holds."""
    _remove_unheld(parent, prefix, suffix="")


def _stem(target: Path) -> str:
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]
    return f"{_PREFIX}{digest}-"  # as long for every target: names end at 255 bytes


def _remove_unheld(folder: Path, prefix: str, suffix: str = _SUFFIX) -> None:
    if not POSIX:
        return
    try:
        names = [e.name for e in os.scandir(folder) if e.name.startswith(prefix)]
    except OSError:
        return  # who writes there says what is wrong with it
    for path in (folder / name for name in names if name.endswith(suffix)):
        try:
            number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # it is somebody else's, or gone by now
        try:
            if try_lock(number):
                _remove(path)
        finally:
            os.close(number)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
