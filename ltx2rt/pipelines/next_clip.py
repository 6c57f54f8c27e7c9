"""The next of several clips, made on a thread of its own while the one before it is decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ltx2rt.errors import InternalError
from ltx2rt.pipelines.engines import Engines
from ltx2rt.progress import Cancelled

T = TypeVar("T")


class Cancel(threading.Event):
    """Set when itself or another one is: what works for one clip of several.

    Args:
        every: of all clips.
    """

    def __init__(self, every: threading.Event | None = None) -> None:
        super().__init__()
        self._every = every

    def is_set(self) -> bool:
        """See `threading.Event`."""
        return super().is_set() or (self._every is not None and self._every.is_set())


class NextClip(Generic[T]):
    """Begun at once, taken when its turn comes. Closing the engines drops it.

    Args:
        engines: that make it.
        make: runs on the thread.
        cancel: ends `make` between two steps.
    """

    def __init__(self, engines: Engines, make: Callable[[], T], cancel: threading.Event) -> None:
        self._cancel = cancel
        self._made: tuple[T] | None = None
        self._error: BaseException | None = None
        self._leave = engines.begun_ahead(self.drop)
        self._thread = threading.Thread(
            target=self._run, args=(make,), name="next clip", daemon=True
        )
        self._thread.start()

    def take(self) -> T:
        """What was made, once it is; what it raised is raised here."""
        self._thread.join()
        self._leave()
        if self._error is not None:
            raise self._error
        if self._made is None:
            raise InternalError("a clip was made on a thread that left nothing")
        return self._made[0]

    def drop(self) -> None:
        """Nobody wants it: end it, and wait until it has ended."""
        self._cancel.set()
        self._thread.join()
        self._leave()

    def _run(self, make: Callable[[], T]) -> None:
        try:
            if self._cancel.is_set():
                raise Cancelled("cancelled before it began.")
            self._made = (make(),)
        except BaseException as error:  # handed to who takes it, which raises it
            self._error = error
