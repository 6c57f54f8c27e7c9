"""Tiles, masks and streaming, against the numbers of spec/video_vae.md §7."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.engine import Array, EngineBase, EngineSpec, TensorSpec
from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.latents.tiling import (
    AxisTiling,
    Interval,
    TilingConfig,
    causal,
    decode_tile,
    encode_tile,
    normalized,
    split_by_count,
    split_by_size,
    trapezoid,
)

GARBAGE = 1000.0


class RepeatDecoder(EngineBase):
    """Repeats latent cells into pixels, and spoils the first frame of every clip it gets."""

    spec = EngineSpec(
        "video_decoder",
        (TensorSpec("video_latent", "float32", ("B", 3, "Fl", "Hl", "Wl")),),
        (TensorSpec("video", "float32", ("B", 3, "F", "H", "W")),),
    )

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        self.calls += 1
        latent = tensors["video_latent"]
        video = latent.repeat(8, axis=2)[:, :, 7:].repeat(32, axis=3).repeat(32, axis=4)
        video[:, :, 0] += GARBAGE
        return {"video": video}


class SampleEncoder(EngineBase):
    """Takes one pixel of each cell, and spoils the first latent frame of every clip it gets."""

    spec = EngineSpec(
        "video_encoder",
        (TensorSpec("video", "float32", ("B", 3, "F", "H", "W")),),
        (TensorSpec("video_latent", "float32", ("B", 3, "Fl", "Hl", "Wl")),),
    )

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        latent = tensors["video"][:, :, ::8, ::32, ::32].copy()
        latent[:, :, 0] += GARBAGE
        return {"video_latent": latent}


def random_latent(*cells: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((1, 3, *cells)).astype(np.float32)


def spans(axis: AxisTiling, cells: int, factor: int) -> list[tuple[int, int]]:
    return [(i.start, i.stop) for i in axis.split(cells, factor)]


def test_split_examples_of_the_spec() -> None:
    plain = split_by_size(16, 10, 3)
    assert plain == (Interval(0, 10, 0, 3), Interval(7, 16, 3, 0))
    assert causal(plain) == (Interval(0, 10, 0, 3), Interval(6, 16, 4, 0))
    assert split_by_size(10, 10, 3) == (Interval(0, 10, 0, 0),)
    counted = [(i.start, i.stop) for i in split_by_count(20, 3, 2)]
    assert counted == [(0, 8), (6, 14), (12, 20)]
    assert [(i.start, i.stop) for i in split_by_count(16, 3, 2)] == [(0, 7), (5, 12), (10, 16)]


def test_masks_of_the_spec() -> None:
    assert trapezoid(8, 3, 3).tolist() == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    from_zero = trapezoid(8, 3, 3, from_zero=True)
    np.testing.assert_allclose(from_zero, [0, 1 / 3, 2 / 3, 1, 1, 0.75, 0.5, 0.25], rtol=1e-6)
    tile = decode_tile(Interval(6, 16, 4, 0), 8, temporal=True)
    assert (tile.target.start, tile.target.stop) == (48, 121)
    np.testing.assert_allclose(tile.weights[:26], [*(k / 25 for k in range(25)), 1], rtol=1e-6)
    tile = encode_tile(Interval(6, 16, 4, 0), 8, temporal=True)
    assert (tile.source.start, tile.source.stop) == (48, 121)
    assert tile.weights.tolist() == [0, 0.25, 0.5, 0.75, *[1] * 6]


@pytest.mark.parametrize(
    ("height", "width", "tile_height", "rows", "columns"),
    [
        (512, 768, 512, [(0, 16)], [(0, 24)]),
        (1024, 1536, 512, [(0, 16), (14, 30), (28, 32)], [(0, 24), (22, 46), (44, 48)]),
        (1088, 1920, 448, [(0, 14), (12, 26), (24, 34)], [(0, 24), (22, 46), (44, 60)]),
    ],
)
def test_auto_sizes(height, width, tile_height, rows, columns) -> None:
    cells = (16, height // 32, width // 32)
    config = TilingConfig.auto().resolved(cells)
    assert (config.height.size, config.width.size) == (tile_height, 768)
    assert spans(config.height, cells[1], 32) == rows
    assert spans(config.width, cells[2], 32) == columns
    times = [(t.source.start, t.source.stop) for t in TilingConfig.auto().tiles(cells)[0]]
    assert times == [(0, 10), (6, 16)]


@given(
    length=st.integers(1, 60),
    size=st.integers(2, 20),
    share=st.floats(0, 1),
    temporal=st.booleans(),
    factor=st.sampled_from([8, 32]),
)
def test_tiles_cover_and_weights_sum_to_one(length, size, share, temporal, factor) -> None:
    intervals = split_by_size(length, size, int(share * (size - 1)))
    check_cover(intervals, length, temporal=temporal, factor=factor)


@given(length=st.integers(1, 60), data=st.data(), temporal=st.booleans())
def test_counted_tiles_cover_and_weights_sum_to_one(length, data, temporal) -> None:
    count = data.draw(st.integers(1, length))
    largest = max(0, length - count)  # size > overlap needs overlap <= length - count
    intervals = split_by_count(length, count, data.draw(st.integers(0, largest)))
    assert len(intervals) == count
    sizes = [i.stop - i.start for i in intervals]
    assert max(sizes) - min(sizes) <= 1
    check_cover(intervals, length, temporal=temporal, factor=8)


def check_cover(intervals, length: int, *, temporal: bool, factor: int) -> None:
    if temporal:
        intervals = causal(intervals)
    assert intervals[0].start == 0
    assert intervals[-1].stop == length
    assert all(b.start <= a.stop for a, b in itertools.pairwise(intervals))
    for make, size in ((decode_tile, (length - 1) * factor + 1), (encode_tile, length)):
        full = size if temporal or make is encode_tile else length * factor
        total = np.zeros(full)
        for tile in normalized([make(i, factor, temporal=temporal) for i in intervals]):
            assert len(tile.weights) == tile.target.stop - tile.target.start
            total[tile.target] += tile.weights
        # float32 ramps of up to a thousand entries
        np.testing.assert_allclose(total, 1, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(
    cells=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    frames=st.sampled_from([(0, 0), (16, 0), (16, 8), (24, 16), (32, 8)]),
    side=st.sampled_from([(0, 0), (64, 0), (64, 32), (96, 64)]),
)
def test_tiled_decode_streams_the_same_video(cells, frames, side) -> None:
    latent = random_latent(*cells)
    tiling = TilingConfig(
        frames=AxisTiling(*frames), height=AxisTiling(*side), width=AxisTiling(*side)
    )
    engine, reports = RepeatDecoder(), []
    chunks = list(
        VideoDecoder(engine).decode_raw(latent, tiling, lambda *report: reports.append(report))
    )
    want = np.concatenate(list(VideoDecoder(RepeatDecoder()).decode_raw(latent)), axis=2)
    # the spoiled first frame of later tiles must have weight zero; 1e-2: garbage is 1000, eps 1e-7
    np.testing.assert_allclose(np.concatenate(chunks, axis=2)[:, :, 1:], want[:, :, 1:], atol=1e-5)
    np.testing.assert_allclose(chunks[0][:, :, 0], want[:, :, 0], atol=1e-2)
    assert reports == [(i + 1, engine.calls) for i in range(engine.calls)]


def test_frames_leave_before_the_last_tile_is_decoded() -> None:
    engine = RepeatDecoder()
    tiling = TilingConfig(frames=AxisTiling(80, 24))
    stream = VideoDecoder(engine).decode(random_latent(16, 1, 1), tiling)
    first = next(stream)
    assert engine.calls == 1
    assert first.shape == (48, 32, 32, 3)
    assert first.min() >= 0
    assert first.max() <= 1
    assert [len(c) for c in stream] == [73]


@settings(deadline=None, max_examples=25)
@given(
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    extra=st.integers(0, 7),
    frames=st.sampled_from([(0, 0), (24, 16), (32, 16)]),
    side=st.sampled_from([(0, 0), (96, 64), (128, 64)]),
)
def test_tiled_encode_gives_the_same_latent(cells, extra, frames, side) -> None:
    shape = (1, 3, 8 * (cells[0] - 1) + 1 + extra, 32 * cells[1], 32 * cells[2])
    video = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    tiling = TilingConfig(
        frames=AxisTiling(*frames), height=AxisTiling(*side), width=AxisTiling(*side)
    )
    encoder = VideoEncoder(SampleEncoder())
    got, want = encoder.encode(video, tiling), encoder.encode(video)
    assert got.shape == (1, 3, *cells)
    np.testing.assert_allclose(got[:, :, 1:], want[:, :, 1:], atol=1e-5)
    np.testing.assert_allclose(got[:, :, 0], want[:, :, 0], atol=1e-2)  # garbage is 1000


def test_invalid_tilings_list_every_problem() -> None:
    factors = VideoScaleFactors()
    bad = TilingConfig(
        frames=AxisTiling(8, 8), height=AxisTiling(100, 10), width=AxisTiling(64, 0, 2)
    )
    with pytest.raises(ShapeError) as error:
        bad.check(factors)
    for part in (
        "frames: a tile size of 8",
        "frames: an overlap of 8 is not smaller",
        "height: a tile size of 100",
        "height: an overlap of 10 is not a multiple of 32",
        "width: give a tile size (64) or count (2)",
    ):
        assert part in str(error.value)
    short = TilingConfig(frames=AxisTiling(80, 8), height=AxisTiling(768, 32))
    short.check(factors)
    with pytest.raises(ShapeError, match="below the 16 a tiled encode needs"):
        short.check(factors, encode=True)
    counted = TilingConfig(frames=AxisTiling(count=2, overlap=1), width=AxisTiling(count=3))
    assert [len(axis) for axis in counted.tiles((4, 2, 6), factors, encode=True)] == [2, 1, 3]
    with pytest.raises(ShapeError, match="into 5 tiles"):
        TilingConfig(frames=AxisTiling(count=5)).tiles((4, 2, 2))
    with pytest.raises(ShapeError, match="fewer tiles or a smaller overlap"):
        TilingConfig(frames=AxisTiling(count=4, overlap=2)).tiles((5, 2, 2))


def test_shapes_are_checked() -> None:
    decoder = VideoDecoder(RepeatDecoder(), min_latent_cells=2)
    with pytest.raises(ShapeError, match="pads by reflection"):
        decoder.decode_raw(random_latent(1, 1, 3))
    with pytest.raises(ShapeError, match="one clip"):
        list(decoder.decode(np.zeros((2, 3, 1, 2, 2), np.float32)))
    with pytest.raises(ShapeError, match=r"height=48 .* Nearest valid: 32, 64") as error:
        VideoEncoder(SampleEncoder()).encode(np.zeros((1, 3, 1, 48, 33), np.float32))
    assert "width=33" in str(error.value)


def test_upsampled_sizes() -> None:
    engine = RepeatDecoder()
    assert LatentUpsampler(engine).output_cells(3, 8, 12) == (3, 16, 24)
    assert LatentUpsampler(engine, (3, 2)).output_cells(3, 5, 8) == (3, 8, 12)
    assert LatentUpsampler(engine, (1, 1), 2).output_cells(16, 8, 12) == (31, 8, 12)
