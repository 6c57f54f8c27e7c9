"""Frames for programs of asyncio: decoded on a thread of their own, while the loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


async def iterate(start: Callable[[], Iterator[Item]]) -> AsyncIterator[Item]:
    """What an iterator gives, taken on one thread: it holds its pipeline, and lets it go there.

    Args:
        start: makes the iterator.
    """
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
    items = start()
    end = object()
    try:
        while (item := await loop.run_in_executor(thread, next, items, end)) is not end:
            yield item  # type: ignore[misc]
    finally:
        if isinstance(items, Generator):
            thread.submit(items.close)
        thread.shutdown(wait=False)
