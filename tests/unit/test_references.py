"""Properties of references and refined tiles, and LoRA metadata that nobody wrote on purpose."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltx2rt.components.reference_conditioner import (
    ReferenceFile,
    mask_problems,
    reference_problems,
)
from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.latents.conditioning import (
    ReferenceVideo,
    make_video_state,
    mask_latent,
    subsample_indices,
)
from ltx2rt.latents.shapes import VideoLatentShape
from ltx2rt.latents.tiling import refine_tiles
from ltx2rt.lora.metadata import (
    detailing_factor,
    file_reference_factors,
    hdr_transfer,
    merged_metadata,
    reference_factors,
)
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors

KEYS = (
    "reference_downscale_factor", "reference_spatial_scale_factor",
    "reference_temporal_scale_factor", "hdr_transform", "use_hdr_transform",
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=8),
    st.integers(-3, 10**30).map(str),
    st.sampled_from(["", "nan", "1e400", "[2]", "{}", "null", "true", "logc3", "acescct", "0x2"]),
)


def lora(folder: Path, name: str, metadata: dict[str, str]) -> SafetensorsFile:
    path = folder / f"{name}.safetensors"
    write_safetensors(path, {"x": np.zeros(1, np.float32)}, metadata)
    return SafetensorsFile(path)


@given(
    mask=st.integers(1, 40),
    reference=st.integers(1, 40),
    clip=st.sampled_from([1, 9, 17, 25, 33]),
    scale=st.sampled_from([1, 2, 4]),
)
def test_a_mask_is_refused_early_where_it_would_be_late(
    mask: int, reference: int, clip: int, scale: int
) -> None:
    counts = {"mask": mask, "reference": reference}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ltx2rt.components.reference_conditioner.count_frames",
            lambda path, _: counts[path.name],
        )
        shown = [ReferenceFile(path=Path("reference"))]
        problems = mask_problems(Path("mask"), shown, clip, 24.0, temporal_scale=scale)
    loaded = [i for i in range(min(reference, clip)) if i == 0 or (i - 1) % scale == 0]
    shape = VideoLatentShape(num_frames=(len(loaded) - 1) // 8 + 1, height=1, width=1)
    late = []
    try:
        mask_latent(np.zeros((1, 1, min(mask, clip), 2, 2), np.float32), shape)
    except ShapeError as error:
        late.append(f"'mask' for 'reference': {error}")
    assert problems == late


@given(
    st.tuples(*(st.integers(1, n) for n in (60, 90, 90))),
    st.tuples(*(st.integers(1, 4) for _ in range(3))),
    st.tuples(*(st.integers(0, 9) for _ in range(3))),
)
def test_refined_tiles_cover_the_latent_with_weights_that_sum_to_one(
    cells: tuple[int, ...], counts: tuple[int, ...], overlaps: tuple[int, ...]
) -> None:
    try:
        axes = refine_tiles(cells, counts, overlaps)
    except ValueError:  # more tiles than the overlap leaves room for
        assert any(n > 2 for n in counts)
        return
    for length, count, tiles in zip(cells, counts, axes, strict=True):
        assert len(tiles) == (count if length >= count else 1)
        total = np.zeros(length)
        for tile in tiles:
            assert tile.source == tile.target
            total[tile.target] += tile.weights
        np.testing.assert_allclose(total, 1, atol=1e-5)


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([24.0, 25.0, 30.0]),
)
def test_a_smaller_slower_reference_lies_over_the_whole_clip(
    frames: int, height: int, width: int, downscale: int, temporal_scale: int, frame_rate: float
) -> None:
    """With `temporal_scale` S the clip has S times the pixel frames after the first."""
    clip = VideoLatentShape(
        num_frames=(frames - 1) * temporal_scale + 1,
        height=height * downscale,
        width=width * downscale,
    )
    state = make_video_state(clip, frame_rate)
    latent = np.zeros((1, 128, frames, height, width), np.float32)
    item = ReferenceVideo(latent=latent, downscale=downscale, temporal_scale=temporal_scale)
    positions = item.apply(state).positions
    target, reference = positions[:, :, : clip.token_count], positions[:, :, clip.token_count :]
    assert (reference >= 0).all()
    np.testing.assert_allclose(reference.max(axis=(0, 2, 3)), target.max(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(reference.min(axis=(0, 2, 3)), 0)


@given(st.integers(1, 300), st.integers(1, 9))
def test_subsampling_keeps_the_first_frame_and_even_steps(frames: int, scale: int) -> None:
    kept = subsample_indices(frames, scale)
    assert kept[0] == 0
    assert kept == sorted(set(kept))
    assert kept[-1] < frames
    assert len(kept) == 1 + math.ceil((frames - 1) / scale)
    assert set(np.diff(kept[1:])) <= {scale}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), max_size=3))
def test_any_metadata_gives_factors_or_one_sentence(
    tmp_path: Path, tables: list[dict[str, str]]
) -> None:
    files = [lora(tmp_path, str(i), metadata) for i, metadata in enumerate(tables)]
    for file in files:
        assert all(
            factor >= 1 for factor in (*file_reference_factors(file), detailing_factor(file))
        )
    for read in (reference_factors, hdr_transfer, merged_metadata):
        try:
            read(files)
        except OptionError as error:
            assert "LoRAs" in str(error)  # noqa: PT017 - both ways are right


def test_factors_and_curves_of_known_metadata(tmp_path: Path) -> None:
    plain = lora(tmp_path, "plain", {})
    half = lora(tmp_path, "half", {"reference_downscale_factor": "2"})
    assert (detailing_factor(plain), detailing_factor(half)) == (2, 2)
    same = lora(tmp_path, "same", {"reference_downscale_factor": "1"})
    assert detailing_factor(same) == 1
    for value, curve in (("logc3", "logc3"), ("ACEScct", "acescct"), ("true", "logc3")):
        assert hdr_transfer([plain, lora(tmp_path, "x", {"hdr_transform": value})]) == curve
    assert hdr_transfer([]) == "logc3"
    assert hdr_transfer([lora(tmp_path, "y", {"use_hdr_transform": "acescct"})]) == "acescct"


def test_problems_of_references_are_all_named() -> None:
    with pytest.raises(OptionError, match=r"strength=-0.1 of the reference x.mp4"):
        ReferenceFile(path=Path("x.mp4"), strength=-0.1)
    problems = reference_problems([Path("a.mp4"), Path("b.mp4")])
    assert len(problems) == 2
    assert "a.mp4" in problems[0]
    assert "b.mp4" in problems[1]
