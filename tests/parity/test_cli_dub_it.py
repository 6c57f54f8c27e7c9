"""`ltx2rt generate --pipeline dub-it` on the demo bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.media.reader import probe_video
from ltx2rt.media.sound import read_audio
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import Outcome, expect_user_error, instead, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.demo_loras import write_demo_lora
from tests.parity.media_files import sound_file, video_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dub")


@pytest.fixture(scope="module")
def lora(demo_model: dict[str, Path], folder: Path) -> Path:
    metadata = {"reference_downscale_factor": "2"}
    return write_demo_lora(folder / "dub.safetensors", demo_model, 0, metadata)


def generate(bundle: Path, lora: Path, target: Path, *flags: object) -> Outcome:
    return run(
        "generate", bundle, "--pipeline", "dub-it", "--prompt", "a bell", "--lora", lora,
        *instead("--height", 128, "--width", 128, *flags), "--threads", 1, "--quiet", "-o", target,
    )  # fmt: skip


def latents(bundle: Path, lora: Path, target: Path, *flags: object) -> dict[str, np.ndarray]:
    saved = target.with_suffix(".safetensors")
    outcome = generate(bundle, lora, target, "--save-latents", saved, *flags)
    assert outcome.code == 0, outcome.err
    maps = MappedFiles()
    return {name: maps.raw(entry).copy() for name, entry in SafetensorsFile(saved).items()}


def test_frames_and_rate_are_the_reference_s(
    demo_bundle: Path, demo_model: dict[str, Path], lora: Path, folder: Path
) -> None:
    source = video_file(folder / "source.mp4", 12, 96, 64, 25.0)
    made = latents(demo_bundle, lora, folder / "a.mp4", "--reference-video", source)
    info = probe_video(folder / "a.mp4")
    assert (info.width, info.height, info.num_frames, float(info.frame_rate)) == (128, 128, 9, 25.0)
    sound, rate = read_audio(folder / "a.mp4")
    assert 0 <= sound.shape[1] - info.duration_s * rate < 1024
    assert made["stage_1.audio"].shape == (1, 8, 9, 16)
    # stage 2 sees the sound of stage 1 and leaves it alone
    np.testing.assert_array_equal(made["stage_1.audio"], made["stage_2.audio"])
    # a second LoRA changes the picture, the first one says how large the reference is
    other = write_demo_lora(folder / "style.safetensors", demo_model, 1, {})
    styled = latents(
        demo_bundle, lora, folder / "c.mp4", "--reference-video", source, "--lora", f"{other}:0.7"
    )
    assert styled["stage_1.video"].shape == made["stage_1.video"].shape
    assert np.abs(styled["stage_2.video"] - made["stage_2.video"]).max() > 1e-3
    weaker = latents(
        demo_bundle, lora, folder / "b.mp4", "--reference-video", source,
        "--reference-strength", 0.5,
    )  # fmt: skip
    assert np.abs(weaker["stage_2.video"] - made["stage_2.video"]).max() > 1e-3


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ((), ["needs --reference-video"]),
        (("--reference-video", "none.mp4"), ["there is no such file"]),
        (("--reference-video", "silent.mp4"), ["has no audio stream", "needs the voice"]),
        (("--reference-video", "tone.wav"), ["the file has no video stream"]),
        (
            ("--reference-video", "ok.mp4", "--reference-strength", 1.5),
            ["strength=1.5", "is not in [0, 1]"],
        ),
        (("--reference-video", "ok.mp4", "--lora", "full.safetensors"), ["different spatial"]),
        (
            ("--reference-video", "ok.mp4", "--num-frames", 9, "--frame-rate", 25),
            ["has no use for --num-frames", "has no use for --frame-rate"],
        ),
    ],
)
def test_refused_before_anything_is_loaded(
    flags: tuple[object, ...],
    parts: list[str],
    demo_bundle: Path,
    lora: Path,
    tmp_path: Path,
    demo_model: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    factor = {"reference_downscale_factor": "4"}
    write_demo_lora(tmp_path / "full.safetensors", demo_model, 2, factor)
    sound_file(tmp_path / "tone.wav", 0.5)
    video_file(tmp_path / "ok.mp4", 9)
    video_file(tmp_path / "silent.mp4", 9, sound=False)
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(tmp_path):
        expect_user_error(generate(demo_bundle, lora, tmp_path / "x.mp4", *flags), *parts)
