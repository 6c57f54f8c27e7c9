"""The picture of a clip and its sound, decoded beside each other where they can be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

from ltx2rt.engine import Array
from ltx2rt.results.prefetch import prefetch


@contextmanager
def decoded_beside(
    frames: Iterator[Array], sound: Callable[[], object] | None, *, is_apart: bool
) -> Iterator[Iterator[Array]]:
    """Chunks of frames, made on a thread of their own, and the sound decoded. An error of either
    leaves no decoder at work.

    Args:
        frames: nothing is decoded before the first one is asked for.
        sound: decodes and keeps it; None: there is none.
        is_apart: the two share nothing: the sound is decoded beside the first frames. Otherwise it
            is before them.
    """
    with closing(prefetch(frames)) as chunks:
        if sound is None or not is_apart:
            if sound is not None:
                sound()
            yield chunks
            return
        with ThreadPoolExecutor(1, "sound") as pool:
            made = pool.submit(sound)
            first = next(chunks, None)
            made.result()
        yield itertools.chain([] if first is None else [first], chunks)
