"""An iterator that runs on a thread of its own, a little ahead of who takes from it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator

from ltx2rt.engine import Array


def prefetch(chunks: Iterator[Array], depth: int = 2) -> Generator[Array]:
    """Run an iterator on its own thread, at most `depth` items ahead; its exceptions are raised
    here. Closing it ends the thread.
    """
    items: queue.Queue[Array | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Array | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for chunk in chunks:
                put(chunk)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)
        finally:
            if isinstance(chunks, Generator):  # what it holds is let go on the thread that took it
                chunks.close()

    thread = threading.Thread(target=run, name="decode", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
