"""`--pipeline dfr` on the demo model with a keyframe embedding; its tables against the official
ones.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ltx2rt.errors import ShapeError
from ltx2rt.latents.temporal_rounds import keyframe_canvas, temporal_tiles
from ltx2rt.media.reader import probe_video, read_audio
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.demo_loras import write_demo_lora
from tests.parity.golden import golden_root

ASK = ("--pipeline", "dfr", "--prompt", "a lake", "--seed", 5, "--threads", 1, "--quiet")
SIZE = ("--height", 64, "--width", 64)


@pytest.fixture(scope="module")
def tables() -> dict:
    root = golden_root()
    if root is None or not (root / "pipelines/tables.json").is_file():
        pytest.skip("the pipeline tables are not here (LTX2RT_GOLDEN)")
    return json.loads((root / "pipelines/tables.json").read_text())


def test_canvas_is_the_official_one(tables: dict) -> None:
    for frames, (canvas, _, positions) in tables["dfr_canvas"].items():
        got = keyframe_canvas(int(frames))
        assert (got.num_frames, list(got.keyframes)) == (canvas, positions), frames


def test_tiles_are_the_official_ones(tables: dict) -> None:
    assert tables["dfr_tiles"]
    for name, want in tables["dfr_tiles"].items():
        frames, number = int(name.split()[0]), int(name[-1])
        keyframes = list(keyframe_canvas(frames).keyframes)
        for round_number in range(1, number + 1):
            seams = [2 * k for k in keyframes]
            tiles = temporal_tiles(seams, 2**round_number)
            keyframes = sorted({*seams, *(s for tile in tiles for s in tile.slots)})
        got = [
            {
                "pixel_start": tile.start,
                "pixel_end": tile.end,
                "latent_start": tile.latents.start,
                "latent_end_exclusive": tile.latents.stop,
                "anchor_kf_global": list(tile.anchors),
                "slot_kf_global": list(tile.slots),
                "drop_latent_prefix": tile.drop,
            }
            for tile in tiles
        ]
        assert got == want, name


@given(st.integers(1, 200))
def test_canvas_holds_the_clip_and_ends_with_a_keyframe(eighths: int) -> None:
    frames = 8 * eighths + 1
    canvas = keyframe_canvas(frames)
    assert frames <= canvas.num_frames < frames + 24
    assert canvas.keyframes[-1] == canvas.num_frames - 1
    assert {b - a for a, b in pairwise((0, *canvas.keyframes))} <= {24, 32}


@given(st.lists(st.integers(2, 8), min_size=1, max_size=20), st.sampled_from([1, 2, 4, 7]))
def test_tiles_cover_every_latent_frame_once(eighths: list[int], count: int) -> None:
    seams = [8 * int(n) for n in np.cumsum(eighths)]
    tiles = temporal_tiles(seams, count)
    assert len(tiles) == min(count, len(seams))
    kept = [f for t in tiles for f in range(t.latents.start + t.drop, t.latents.stop)]
    assert kept == list(range(seams[-1] // 8 + 1))
    slots = {slot for tile in tiles for slot in tile.slots}
    assert slots == {(a + b) // 2 for a, b in pairwise((0, *seams))}  # one between any two
    for tile in tiles:
        assert set(tile.anchors) <= set(seams)
        assert all(tile.start < slot < tile.end for slot in tile.slots)


@pytest.mark.parametrize("seams", [[], [8], [12], [32, 40], [32, 60]])
def test_segments_that_are_too_short_or_odd_are_refused(seams: list[int]) -> None:
    with pytest.raises(ShapeError, match="multiples of 8 and at least 16"):
        temporal_tiles(seams, 2)
    with pytest.raises(ShapeError, match="num_frames=1 leaves nothing between keyframes"):
        keyframe_canvas(1)


def latents(path: Path) -> dict[str, np.ndarray]:
    maps = MappedFiles()
    return {name: maps.raw(entry).copy() for name, entry in SafetensorsFile(path).items()}


def test_twice_and_four_times_the_frame_rate(
    keyframe_bundle: Path, demo_model: dict[str, Path], tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(photo)
    detailing = write_demo_lora(tmp_path / "detailing.safetensors", demo_model, 3)
    made = {}
    for rounds in (0, 2):
        target = tmp_path / f"{rounds}.mp4"
        outcome = run(
            "generate", keyframe_bundle, *ASK, *SIZE, "--num-frames", 25, "--image", f"{photo}@0",
            "--temporal-upsample-rounds", rounds, "--detailing-lora", f"{detailing}:0.5",
            "-o", target, "--save-latents", target.with_suffix(".safetensors"), "--json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        info = probe_video(target)
        assert (info.width, info.height) == (64, 64)
        assert info.num_frames == outcome.json["num_frames"] == 24 * 2**rounds + 1
        assert info.frame_rate == 24 * 2**rounds
        wave, rate = read_audio(target)
        # AAC ends with a part of a block
        assert abs(wave.shape[1] - round(float(info.num_frames / info.frame_rate) * rate)) <= 1024
        made[rounds] = latents(target.with_suffix(".safetensors"))
    stages = [name for name in made[2] if name.endswith(".video") and name.startswith("round")]
    assert stages == ["round_1_tile_1.video", "round_2_tile_1.video", "round_2_tile_2.video"]
    for name, value in made[0].items():  # rounds come after the stages, and change none of them
        if name.startswith("stage"):
            np.testing.assert_array_equal(value, made[2][name])
    assert made[2]["round_2_tile_2.keyframes"].shape == (1, 128, 2, 2, 2)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--num-frames", 1], ["--num-frames=1 leaves nothing between keyframes"]),
        (["--num-frames", 20], ["--num-frames=20 is not 8k+1"]),
        (["--num-generated-keyframes", 2], ["has no use for --num-generated-keyframes"]),
        (["--detailing-lora", "absent.safetensors"], ["cannot read absent.safetensors"]),
        (["--detailing-lora", "x:nan"], ["strength=nan of LoRA x is not a number"]),
    ],
)
def test_wrong_requests(
    keyframe_bundle: Path, tmp_path: Path, flags: list, parts: list[str]
) -> None:
    with unchanged(tmp_path):
        outcome = run("generate", keyframe_bundle, *ASK, *SIZE, *flags, "-o", tmp_path / "x.mp4")
    expect_user_error(outcome, *parts)


def test_a_model_without_keyframes_or_upsampler_says_both(
    demo_bundle: Path, tmp_path: Path
) -> None:
    outcome = run(
        "generate", demo_bundle, *ASK, *SIZE, "--num-frames", 9, "--temporal-upsample-rounds", 1,
        "-o", tmp_path / "x.mp4",
    )  # fmt: skip
    expect_user_error(
        outcome, "LTX-2.3 has no keyframe embedding", "temporal rounds need a temporal upsampler"
    )
