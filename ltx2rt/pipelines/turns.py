"""One pipeline, many threads: its engines work for one of them at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ltx2rt.errors import OptionError


class Turns:
    """A lock that the thread which has it may take again, and that any thread may give back: a clip
    whose decoding was begun by one thread may be dropped by another.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: int | None = None
        self._count = 0
        self._closed = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait until no other thread has it, and keep it inside.

        Raises:
            OptionError: the pipeline is closed.
        """
        me = threading.get_ident()
        with self._changed:
            while self._owner not in (None, me):
                self._changed.wait()
            if self._closed:
                raise OptionError("this pipeline is closed; make a new one from the bundle.")
            self._owner = me
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                if not self._count:
                    self._owner = None
                    self._changed.notify_all()

    def close(self) -> None:
        """Wait for other threads, and refuse everything from then on."""
        me = threading.get_ident()
        with self._changed:
            while self._owner not in (None, me):
                self._changed.wait()
            self._closed = True
            self._changed.notify_all()
