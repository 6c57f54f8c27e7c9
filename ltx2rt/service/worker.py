"""The process that makes clips: `python -m ltx2rt.service.worker` reads one JSON document a line on
stdin and writes one a line to stdout.

The first line says which bundle and how to run; then come `{"make": ...}`, `{"ahead": ...}`,
`{"cancel": ...}` and `{"ping": ...}`. It answers `{"ready": ...}`, events, `{"pong": ...}`. What is
not the request's fault ends the process, and so the driver's context: whoever started it starts
another one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.child import end_with_parent, own_lines
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import DeviceLostError, EngineError, Ltx2rtError
from ltx2rt.plain_data import from_plain
from ltx2rt.service.events import Event, error_event
from ltx2rt.service.maker import Maker, into_folder
from ltx2rt.service.requests import Order

EXIT_BROKEN = 3


class Lines:
    """One JSON document a line, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, **document: Any) -> None:
        """Write one document."""
        text = json.dumps(document, ensure_ascii=False, default=str)
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()


class Orders:
    """What the parent asks for, read on a thread of its own: a cancel is heard while a clip is
    made.

    Args:
        lines: for answers.
        ahead: is told what the next clip will be.
    """

    def __init__(self, lines: Lines, ahead: Callable[[dict[str, Any]], None]) -> None:
        self._lines, self._ahead = lines, ahead
        self._orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancels: dict[str, threading.Event] = {}
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "ping" in message:
                self._lines.say(pong=message["ping"])
            elif "cancel" in message:
                if event := self._cancels.get(message["cancel"]):
                    event.set()
            elif "ahead" in message:
                self._ahead(message["ahead"])
            else:
                self._cancels[message["make"]["id"]] = threading.Event()
                self._orders.put(message["make"])
        for event in [*self._cancels.values()]:  # the parent is gone, or wants no more
            event.set()
        self._orders.put(None)

    def next(self) -> tuple[dict[str, Any], threading.Event] | None:
        """The next clip, and what cancels it; None: there will be none."""
        order = self._orders.get()
        return None if order is None else (order, self._cancels[order["id"]])

    def done(self, job: str) -> None:
        """Nobody cancels this one any more."""
        self._cancels.pop(job, None)


def main() -> int:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent decides
    lines = Lines(own_lines())
    setup = json.loads(sys.stdin.readline())
    places = setup["weights_dir"]
    bundle = open_bundle(Path(setup["bundle"]), weights_dir=places and Path(places))
    maker = Maker(bundle, from_plain(RuntimeConfig, setup["runtime"], "runtime"))
    orders = Orders(lines, maker.encode_ahead)
    lines.say(ready=bundle.bundle_id)
    while (order := orders.next()) is not None:
        if not make(maker, lines, *order):
            return EXIT_BROKEN
        orders.done(order[0]["id"])
    maker.close()
    return 0


def make(maker: Maker, lines: Lines, order: dict[str, Any], cancel: threading.Event) -> bool:
    """Make one clip and say how that ended; False: this process should not make another one."""
    job = order["id"]

    def emit(event: Event) -> None:
        lines.say(job=job, **event.plain)

    work = order["work_dir"]
    try:
        asked = Order.from_plain(order["order"])
        result = maker.make(
            asked, into_folder(Path(order["folder"])), emit, cancel, work and Path(work)
        )
    except DeviceLostError as error:  # another process has the job again, after its last stage
        sys.stderr.write(f"{error}\n")
        return False
    except (Ltx2rtError, MemoryError, OSError) as error:
        emit(error_event(error))
        return not isinstance(error, EngineError | MemoryError)
    emit(Event(kind="result", data=result))
    return True


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of libraries do not hold up the end
