"""Automatic tiles of the diffusion decoder: a pure function of sizes and memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt import machine
from ltx2rt.components import decoder_tiles
from ltx2rt.components.decoder_tiles import (
    DEVICE_BYTES,
    RESERVED_BYTES,
    Cells,
    DecoderOptions,
    auto_tiling,
    decode_bytes,
    feature_cells,
    least_waste,
)
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.latents.tiling import AxisTiling, TilingConfig
from ltx2rt.machine import machine_bytes
from ltx2rt.pipelines import base
from ltx2rt.pipelines.decoding import chosen_tiling
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.sampling.noise import TorchGenerator
from tests.unit.test_diffusion_decoder import SHIPPED

FACTS = DecoderOptions.from_options(SHIPPED)
DEVICE = DecoderOptions.from_options({**SHIPPED, "tile_bytes": DEVICE_BYTES})
GIB = 2**30


def longest(facts: DecoderOptions, tiling: TilingConfig, cells: Cells) -> Cells:
    axes = decoder_tiles.decoder_tiles(facts, tiling, cells)
    frames, rows, columns = (max(t.source.stop - t.source.start for t in a) for a in axes)
    return frames, rows, columns


@pytest.mark.parametrize("latent", [(16, 16, 24), (16, 22, 38)], ids=["768x512", "1216x704"])
def test_one_tile_where_memory_allows(latent: Cells) -> None:
    """3.0 and 6.5 million patches: no split, one draw of noise."""
    assert auto_tiling(FACTS, latent, 128 * GIB) == TilingConfig.none()
    assert auto_tiling(FACTS, latent, 24 * GIB) != TilingConfig.none()


def test_a_device_has_what_the_build_says() -> None:
    assert auto_tiling(DEVICE, (16, 16, 24)) == TilingConfig.none()
    small = DecoderOptions.from_options({**SHIPPED, "tile_bytes": 8 * GIB})
    cells = feature_cells(small, (16, 16, 24))
    assert longest(small, auto_tiling(small, (16, 16, 24)), cells) < cells


@pytest.mark.parametrize(
    ("gib", "tile"), [(15.5, (1024, 512)), (22.2, (1024, 864)), (40, (1024, 1536))]
)
def test_the_official_rule_at_1536x1024(gib: float, tile: tuple[int, int]) -> None:
    """Height and width of the tiles that spec/diffusion_decoder.md §7 names for cards of 16, 24 and
    40 GB, at its own cost; less what a driver holds.
    """
    cells = feature_cells(FACTS, (16, 32, 48))
    features = 69 * 128 * 192 * 512 * 2

    def fits(cells_of_tile: Cells) -> bool:
        frames, rows, columns = cells_of_tile[0] * 2, cells_of_tile[1] * 8, cells_of_tile[2] * 8
        blended = 1024 * 1536 * 2 * frames * 3 * 2
        needed = blended + frames * (rows // 4) * (columns // 4) * 256 * 2 * 5
        return needed <= gib * GIB - GIB - GIB - features

    frames, rows, columns = longest(FACTS, least_waste(FACTS, cells, fits), cells)
    assert (frames, rows * 8, columns * 8) == (61, *tile)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60)), st.integers(4, 200))
def test_tiles_fit_or_are_the_smallest(latent: Cells, gib: int) -> None:
    cells = feature_cells(FACTS, latent)
    tiling = auto_tiling(FACTS, latent, gib * GIB)
    tile = longest(FACTS, tiling, cells)
    fits = decode_bytes(FACTS, cells, tile, 4) <= gib * GIB - RESERVED_BYTES
    smallest = longest(FACTS, least_waste(FACTS, cells, lambda _: False), cells)
    assert fits or tile == smallest
    assert TilingConfig.parse(tiling.text()) == tiling  # `--tiling` takes it on any machine


def test_more_memory_overlaps_no_more() -> None:
    def overlap(gib: int) -> float:
        tiling = auto_tiling(FACTS, (16, 34, 60), gib * GIB)
        axes = (tiling.frames, tiling.height, tiling.width)
        return 1 - float(np.prod([1 - a.overlap / a.size if a.size else 1 for a in axes]))

    shares = [overlap(gib) for gib in (8, 16, 32, 64, 128, 256)]
    assert shares == sorted(shares, reverse=True)
    assert 0 == shares[-1] < shares[0]


def test_memory_counts_the_border_columns() -> None:
    """14 arrays of 256 channels on a grid 5 patches wider on both sides, features of 25 frames, and
    two volumes of pixels that are blended.
    """
    cells = (9, 28, 28)
    wanted = 4 * 14 * 256 * 18 * 56 * (56 + 10) + 4 * (9 + 8) * 28 * 28 * 512
    assert decode_bytes(FACTS, cells, cells, 4) == wanted + 2 * 3 * 4 * 18 * 224 * 224


def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(machine.os, "sysconf", lambda name: sizes[name])
    limit = tmp_path / "memory.max"
    assert machine_bytes(limit) == 4096_000
    for text, found in (("max\n", 4096_000), ("1024\n", 1024), ("8192000000\n", 4096_000)):
        limit.write_text(text)
        assert machine_bytes(limit) == found


@pytest.mark.parametrize(
    ("text", "tiling"),
    [
        ("512x80", (512, 64, 512, 64, 80, 24)),
        ("512x0:64x0", (512, 64, 512, 64, 0, 0)),
        ("768x512x80", (768, 64, 512, 64, 80, 24)),
        ("768x0x80:160x0x40", (768, 160, 0, 0, 80, 40)),
    ],
)
def test_tilings_have_a_text(text: str, tiling: tuple[int, ...]) -> None:
    w, wo, h, ho, f, fo = tiling
    parsed = TilingConfig.parse(text)
    assert parsed == TilingConfig(
        width=AxisTiling(w, wo), height=AxisTiling(h, ho), frames=AxisTiling(f, fo)
    )
    assert TilingConfig.parse(parsed.text()) == parsed


def source(*, has_decoder: bool = True) -> Any:
    return SimpleNamespace(has=lambda *names: has_decoder, options=lambda name: SHIPPED)


def test_a_clip_names_the_tiles_that_memory_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its record repeats them, and with them the noise, on another machine."""
    cells = (16, 16, 24)
    monkeypatch.setattr(decoder_tiles, "machine_bytes", lambda: 24 * GIB)
    chosen = chosen_tiling(source(), "auto", cells)
    assert TilingConfig.parse(chosen) == auto_tiling(FACTS, cells, 24 * GIB)
    monkeypatch.setattr(decoder_tiles, "machine_bytes", lambda: 96 * GIB)
    assert chosen_tiling(source(), "auto", cells) == "none"
    assert chosen_tiling(source(), chosen, cells) == chosen
    assert chosen_tiling(source(has_decoder=False), "auto", cells) == "auto"


def test_the_record_of_a_clip_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "chosen_tiling", lambda *_: "512x80")
    pipe: Any = object.__new__(DistilledPipeline)
    model = SimpleNamespace(audio_sampling_rate=48000)
    pipe.engines = SimpleNamespace(
        release=lambda *_: None,
        sound_is_apart=lambda: False,
        source=SimpleNamespace(bundle_id="b", model=model),
        runtime=RuntimeConfig(),
        scale_factors=FACTS.scale_factors,
    )
    config = GenerationConfig(prompt="a lake")
    run: Any = SimpleNamespace(
        request=Request(config=config),
        config=config,
        stages={},
        job=Job(),
        latents={},
        hdr=None,
        sound=None,
        frames=None,
        crop=lambda video: None,
        generator=TorchGenerator(0),
        generators={},
    )
    clip = pipe.clip(run, np.zeros((1, 1, 1, 1, 1), np.float32), None)
    assert clip.config.tiling == clip.record.request.config.tiling == "512x80"
    assert pipe.clip(run, None, None).config.tiling == "auto"
