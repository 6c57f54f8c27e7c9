"""`ltx2rt generate --pipeline ...` with the guided pipelines on the demo bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.media.reader import probe_video
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.results.record import record_in
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import (
    SMALL,
    Outcome,
    edited_bundle,
    expect_user_error,
    instead,
    unchanged,
)
from tests.parity.command_line import ltx2rt as run
from tests.parity.demo_loras import write_demo_lora
from tests.tolerances import PIPELINE_LATENT_REL_L2

ASK = ("--prompt", "a lake", "--seed", 5, *SMALL, "--num-inference-steps", 2, "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guided")


@pytest.fixture(scope="module")
def lora(demo_model: dict[str, Path], folder: Path) -> Path:
    return write_demo_lora(folder / "distilled.safetensors", demo_model, 0)


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    Image.fromarray(np.full((48, 80, 3), (250, 20, 20), np.uint8)).save(folder / "photo.png")
    return folder / "photo.png"


def generate(bundle: Path, pipeline: str, target: Path, *flags: object) -> Outcome:
    outcome = run(
        "generate", bundle, "--pipeline", pipeline, *ASK, *flags, "-o", target.with_suffix(".mp4"),
        "--save-latents", target.with_suffix(".safetensors"),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return outcome


def latents(path: Path) -> dict[str, np.ndarray]:
    file, maps = SafetensorsFile(path.with_suffix(".safetensors")), MappedFiles()
    return {name: maps.raw(entry).copy() for name, entry in file.items()}


@pytest.mark.parametrize("pipeline", ["one-stage", "two-stage", "two-stage-hq", "keyframe"])
def test_one_clip_of_every_pipeline(
    demo_bundle: Path, folder: Path, lora: Path, photo: Path, pipeline: str
) -> None:
    flags: list[object] = [] if pipeline == "one-stage" else ["--distilled-lora", lora]
    if pipeline == "keyframe":
        flags += ["--image", f"{photo}@0:1:0", "--image", f"{photo}@8:0.5:0"]
    report = generate(demo_bundle, pipeline, folder / pipeline, *flags).json
    assert report["pipeline"] == pipeline
    assert report["num_inference_steps"] == "2"
    assert ("distilled_lora" in report) is (pipeline != "one-stage")
    info = probe_video(folder / f"{pipeline}.mp4")
    assert (info.width, info.height, info.num_frames) == (64, 64, 9)
    made = latents(folder / pipeline)
    assert ("stage_2.video" in made) is (pipeline != "one-stage")
    assert all(np.isfinite(v).all() for v in made.values())


def test_guidance_flags_change_stage_1_only_as_asked(demo_bundle: Path, folder: Path) -> None:
    first = generate(demo_bundle, "one-stage", folder / "a").json
    assert first["video_stg_blocks"] == "(2,)"  # the demo has 3 blocks, its version perturbs 28
    off = [
        flag
        for m, cross in (("video", "a2v"), ("audio", "v2a"))
        for flag in (
            f"--{m}-cfg-guidance-scale", 1, f"--{m}-stg-guidance-scale", 0,
            f"--{m}-rescale-scale", 0, f"--{cross}-guidance-scale", 1,
        )
    ]  # fmt: skip
    second = generate(demo_bundle, "one-stage", folder / "b", *off).json
    assert (second["video_cfg_scale"], second["audio_modality_scale"]) == ("1.0", "1.0")
    a, b = latents(folder / "a"), latents(folder / "b")
    assert np.abs(a["stage_1.video"] - b["stage_1.video"]).max() > 1e-3
    generate(demo_bundle, "one-stage", folder / "c", *off, "--negative-prompt", "anything")
    np.testing.assert_array_equal(latents(folder / "c")["stage_1.video"], b["stage_1.video"])
    generate(demo_bundle, "one-stage", folder / "d", "--max-batch-size", 4)
    difference = latents(folder / "d")["stage_1.video"] - a["stage_1.video"]
    bound = PIPELINE_LATENT_REL_L2 * np.linalg.norm(a["stage_1.video"])  # other summation order
    assert np.linalg.norm(difference) <= bound


def test_user_loras_reach_every_stage(
    demo_bundle: Path, folder: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--distilled-lora", f"{lora}:0.5")
    monkeypatch.chdir(lora.parent)
    generate(demo_bundle, "two-stage", folder / "plain", "--distilled-lora", f"{lora.name}:0.5")
    kept = record_in(folder / "plain.safetensors").stages
    assert kept["stage_2"]["loras"] == [f"{lora}:0.5"]  # wherever it is run again
    report = generate(demo_bundle, "two-stage", folder / "lora", *flags, "--lora", lora).json
    assert report["loras"] == f"{lora}:1"
    assert report["distilled_lora"] == f"{lora}:0.5"
    plain, with_lora = latents(folder / "plain"), latents(folder / "lora")
    for stage in ("stage_1.video", "stage_2.video"):
        assert np.abs(plain[stage] - with_lora[stage]).max() > 1e-3


def test_a_full_model_needs_the_distilled_lora(demo_bundle: Path, tmp_path: Path) -> None:
    def full(manifest: dict[str, Any]) -> None:
        manifest["model"]["is_distilled"] = False

    bundle = edited_bundle(demo_bundle, tmp_path / "full.bundle", full)
    outcome = run(
        "generate", bundle, "--pipeline", "two-stage", "--prompt", "a", *SMALL,
        "-o", tmp_path / "x.mp4",
    )  # fmt: skip
    expect_user_error(
        outcome, "it needs a distilled LoRA for stage 2: name one with --distilled-lora"
    )


@pytest.mark.parametrize(
    ("pipeline", "flags", "parts"),
    [
        (
            "distilled",
            ["--audio-skip-step", 2],
            ["no use for --audio-skip-step", "not guided"],
        ),
        ("one-stage", ["--distilled-lora", "x"], ["has no stage for --distilled-lora"]),
        ("two-stage-hq", ["--distilled-lora", "x:0.5"], ["--distilled-lora-strength-stage-1"]),
        ("keyframe", ["--distilled-lora", "x"], ["needs at least one image (--image)"]),
        ("two-stage-hq", ["--num-inference-steps", 1], ["--num-inference-steps=1 gives no sched"]),
        ("one-stage", ["--num-inference-steps", 10**8], ["is not in [1, 1000]"]),
        (
            "one-stage",
            ["--num-inference-steps", 0],
            ["--num-inference-steps=0 is not in [1, 1000]"],
        ),
        (
            "one-stage",
            ["--video-stg-blocks", 3],
            ["--video-stg-blocks [3] of the video do not exist"],
        ),
        (
            "one-stage",
            ["--video-stg-blocks"],
            ["--video-stg-guidance-scale=1 of the video needs --video-stg-blocks"],
        ),
        ("one-stage", ["--audio-skip-step", -1], ["--audio-skip-step=-1 is negative"]),
        (
            "one-stage",
            ["--a2v-guidance-scale", "nan"],
            ["--a2v-guidance-scale=nan is not a number"],
        ),
        ("one-stage", ["--lora", "absent.safetensors"], ["cannot read absent.safetensors"]),
        ("one-stage", ["--lora", "x:inf"], ["strength=inf of LoRA x is not a number"]),
        ("one-stage", ["--max-batch-size", 0], ["--max-batch-size=0 is less than 1"]),
        ("one-stage", ["--height", 81], ["height=81 is not even"]),
    ],
)
def test_wrong_combinations_are_refused(
    demo_bundle: Path, tmp_path: Path, pipeline: str, flags: list, parts: list[str]
) -> None:
    with unchanged(tmp_path):
        outcome = run(
            "generate", demo_bundle, "--pipeline", pipeline, "--prompt", "a",
            *instead(*SMALL, *flags), "-o", tmp_path / "x.mp4",
        )  # fmt: skip
    expect_user_error(outcome, *parts)
    assert "prompt: " not in outcome.err  # nothing was started


def test_inspect_lists_what_a_bundle_can_run(demo_bundle: Path) -> None:
    report = json.loads(run("inspect", demo_bundle, "--json").out)
    assert report["pipelines"] == {name: {"runs": True, "missing": []} for name in PIPELINES}
