"""Frames are worked on in threads, and come out as they would one after another."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ltx2rt import parallel
from ltx2rt.components.video_decoder import blend_tiles, unit_frames
from ltx2rt.engine import F32
from ltx2rt.latents.tiling import AxisTile, TilingConfig


def blended() -> list[F32]:
    axes = TilingConfig.parse("64x16:32x8").tiles((4, 4, 4))
    generator = np.random.default_rng(0)

    def run(*tile: AxisTile) -> F32:
        sizes = [t.target.stop - t.target.start for t in tile]
        return generator.standard_normal((1, 3, *sizes), np.float32)

    return [unit_frames(chunk) for chunk in blend_tiles(axes, run)]


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "thread_count", lambda: 1)
    alone = blended()
    monkeypatch.setattr(parallel, "thread_count", lambda: 3)
    parallel._pool.cache_clear()
    together = blended()
    parallel._pool.cache_clear()
    assert len(alone) == len(together) > 1
    for want, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, want)
        assert found.min() >= 0
        assert found.max() <= 1


def test_every_item_once_in_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "thread_count", lambda: 2)
    parallel._pool.cache_clear()
    both, done = threading.Barrier(2, timeout=10), []

    def work(item: int) -> None:
        if item < 2:
            both.wait()  # two at once, or this fails
        done.append(item)

    parallel.each(work, range(5))
    assert sorted(done) == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        parallel.each(lambda item: done.append(1 // item), range(3))
    parallel._pool.cache_clear()
