"""A lock beside what a build writes: two at once would replace each other's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltx2rt.errors import OptionError
from ltx2rt.locks import is_still, try_lock


@contextmanager
def build_lock(output: Path) -> Iterator[None]:
    """Hold the lock of a bundle or a work folder; the system releases it if the process ends in any
    way.

    Raises:
        OptionError: another build holds it, or nothing can be written beside the output.
    """
    path = output.absolute().parent / f".{output.name}.lock"
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OptionError(
                f"cannot write {output}: nothing can be made in the folder {path.parent} "
                f"({error.strerror}); choose another one."
            ) from error
        try:
            if not try_lock(file):
                owner = path.read_text(encoding="utf-8").strip() or "unknown"
                raise OptionError(
                    f"another build (process {owner}) is writing {output}; wait until it is done, "
                    "or choose another name."
                )
            if is_still(path, file):  # else its last owner removed it after we had opened it
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(file)
