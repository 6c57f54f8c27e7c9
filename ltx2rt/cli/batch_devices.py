"""`ltx2rt batch --devices 0,1`: a process a device, each makes the next job that nobody has.

A process that ends in the midst of a job costs that job one try; others go on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from ltx2rt.errors import DeviceLostError

Result = dict[str, Any]
#: how often a job is begun whose process ended
TRIES = 2


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th job, from the one at `index` on: the part of one of many machines."""

    index: int = 0
    count: int = 1


def parse_shard(text: str) -> Shard:
    """`2/8`: the third of eight parts."""
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/4")
    shard = Shard(int(index), int(count))
    if not 0 <= shard.index < shard.count:
        raise argparse.ArgumentTypeError(f"{text!r}: parts are numbered from 0 to N-1")
    return shard


def parse_devices(text: str) -> tuple[int | None, ...]:
    """`0,1`: numbers of GPUs; `cpu,cpu`: processes without one."""
    devices = tuple(None if part == "cpu" else _number(part) for part in text.split(","))
    gpus = [d for d in devices if d is not None]
    if len(set(gpus)) < len(gpus):
        raise argparse.ArgumentTypeError(f"{text!r} names a GPU twice")
    return devices


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a GPU, or cpu")
    return int(text)


def on_devices(
    jobs: Sequence[Any], devices: Sequence[int | None], make: Callable[[Any, int | None], Result]
) -> Iterator[tuple[Any, Result]]:
    """Jobs with their results, as they are made.

    Args:
        jobs: what `make` takes; both are sent to other processes.
        devices: a process each.
        make: makes one job on a device; it may keep what it loads in its module.
    """
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Any, Result]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    threads = [
        threading.Thread(target=_work, args=(waiting, done, device, make), daemon=True)
        for device in devices
    ]
    for thread in threads:
        thread.start()
    for _ in jobs:
        yield done.get()
    for thread in threads:
        thread.join()


def _work(
    waiting: queue.SimpleQueue[Any],
    done: queue.SimpleQueue[tuple[Any, Result]],
    device: int | None,
    make: Callable[[Any, int | None], Result],
) -> None:
    pool = _process()
    try:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            result: Result = {}
            for tries in range(1, TRIES + 1):
                future = pool.submit(make, job, device)
                error = future.exception()
                if error is None:
                    result = future.result()
                    break
                result = {"error": f"{type(error).__name__}: {error}"}
                pool.shutdown()  # what it has loaded may be what was wrong
                pool = _process()
                if isinstance(error, DeviceLostError):  # a new process may have its GPU again
                    continue
                if not isinstance(error, BrokenProcessPool):
                    break
                result = {"error": f"its process ended {tries} times while it was made."}
            done.put((job, result))
    finally:
        pool.shutdown()


def _process() -> ProcessPoolExecutor:
    """A process of its own; a copy of this one would have its threads' locks."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
