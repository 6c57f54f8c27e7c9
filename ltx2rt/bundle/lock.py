"""A lock beside what a build writes: two at once would replace each other's work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltx2rt.errors import OptionError


@contextmanager
def build_lock(output: Path) -> Iterator[None]:
    """Hold the lock of a bundle or a work folder; the system releases it if the process ends in any
    way.

    Raises:
        OptionError: another build holds it.
    """
    path = output.absolute().parent / f".{output.name}.lock"
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _try_lock(file):
                owner = path.read_text(encoding="utf-8").strip() or "unknown"
                raise OptionError(
                    f"another build (process {owner}) is writing {output}; wait until it is done, "
                    "or choose another name."
                )
            if _is_still(path, file):  # else its last owner removed it after we had opened it
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(file)


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _try_lock(file: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
