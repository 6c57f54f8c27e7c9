"""Requests to end: SIGTERM and SIGHUP stop a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: those that ask a process to end; not every system has both
ENDING = [s for name in ("SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None]


class Ended(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        signal: which way.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def exit_status(error: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (error.signal if isinstance(error, Ended) else signal.SIGINT)


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Ended` inside, once: what is cleaned up then is not cut off. Those
    that are ignored (`nohup`) stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    before = {s: signal.getsignal(s) for s in ENDING}
    mine = [s for s, old in before.items() if old is signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> None:
        for other in mine:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
