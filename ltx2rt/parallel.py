"""Work on independent parts of an array in threads: numpy lets others run while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")

#: more threads than this wait for the memory that they share
MOST_THREADS = 8


def each(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do `work` for every item, several at once where there are cores for it; the items must not
    depend on one another. What one raises is raised here.
    """
    parts = list(items)
    if len(parts) < 2 or thread_count() < 2:
        for part in parts:
            work(part)
        return
    for _ in _pool().map(work, parts):
        pass


def thread_count() -> int:
    """Threads that work on arrays."""
    return min(os.cpu_count() or 1, MOST_THREADS)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="ltx2rt-arrays")
