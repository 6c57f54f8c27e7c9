"""`ltx2rt generate --pipeline retake` on the demo bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ltx2rt
from ltx2rt.media.image import resize_and_pad, to_vae_input
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import expect_user_error, instead, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.media_files import mono_file, odd_file, video_file

#: 17 frames at 24 fps: latent frames cover 0, 1-8, 9-16; steps of sound begin at 0.04 k - 0.03 s
WINDOW = ("--start-time", 0.4, "--end-time", 0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retake")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return video_file(folder / "source.mp4", 17, 64, 96)


def retake(
    bundle: Path, source: Path, target: Path, *flags: object, pipeline: str = "retake"
) -> dict[str, np.ndarray]:
    """Latents of one run."""
    saved = target.with_suffix(".safetensors")
    outcome = run(
        "generate", bundle, "--pipeline", pipeline, "--prompt", "a bell", "--video", source,
        *instead(*WINDOW, *flags), "--threads", 1, "--quiet", "-o", target,
        "--save-latents", saved,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    maps = MappedFiles()
    return {name: maps.raw(entry).copy() for name, entry in SafetensorsFile(saved).items()}


@pytest.fixture(scope="module")
def both(demo_bundle: Path, folder: Path, source: Path) -> dict[str, np.ndarray]:
    return retake(demo_bundle, source, folder / "both.mp4")


@pytest.fixture(scope="module")
def video_only(demo_bundle: Path, folder: Path, source: Path) -> dict[str, np.ndarray]:
    return retake(
        demo_bundle, source, folder / "video.mp4", "--no-regenerate-audio",
        "--audio-output", folder / "video.wav",
    )  # fmt: skip


@pytest.fixture(scope="module")
def audio_only(demo_bundle: Path, folder: Path, source: Path) -> dict[str, np.ndarray]:
    return retake(demo_bundle, source, folder / "audio.mp4", "--no-regenerate-video")


def test_size_frames_and_rate_are_the_source_s(both: dict[str, np.ndarray], folder: Path) -> None:
    info = probe_video(folder / "both.mp4")
    assert (info.width, info.height, info.num_frames, float(info.frame_rate)) == (96, 64, 17, 24.0)
    sound, rate = read_audio(folder / "both.mp4")
    assert 0 <= sound.shape[1] - info.duration_s * rate < 1024
    assert both["stage_1.video"].shape == (1, 128, 3, 2, 3)
    assert both["stage_1.audio"].shape == (1, 8, 18, 16)


def test_modalities_are_independent(
    both: dict[str, np.ndarray],
    video_only: dict[str, np.ndarray],
    audio_only: dict[str, np.ndarray],
) -> None:
    def close(a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.abs(a - b).max() <= 1e-4)  # what eight steps leave of a part kept by a mask

    # outside the window every run has the source
    assert close(both["stage_1.video"][:, :, :2], audio_only["stage_1.video"][:, :, :2])
    assert close(both["stage_1.audio"][:, :, :10], video_only["stage_1.audio"][:, :, :10])
    # inside, what was kept is the source, what was not is new
    assert not close(both["stage_1.video"][:, :, 2:], audio_only["stage_1.video"][:, :, 2:])
    assert not close(both["stage_1.audio"][:, :, 10:], video_only["stage_1.audio"][:, :, 10:])


def test_kept_sound_is_the_source_s(
    video_only: dict[str, np.ndarray], folder: Path, source: Path
) -> None:
    want, rate = read_audio(source, 0.0, 17 / 24)
    wave, found = read_audio(folder / "video.wav")
    assert found == rate
    np.testing.assert_allclose(wave, want, atol=2 / 32768)  # AAC gives floats, the file 16 bits


def test_silent_source(demo_bundle: Path, folder: Path) -> None:
    silent = video_file(folder / "silent.mp4", 9, 64, 64, sound=False)
    window = ("--start-time", 0, "--end-time", 0.1)
    made = retake(demo_bundle, silent, folder / "sound.mp4", *window)
    assert made["stage_1.audio"].shape == (1, 8, 9, 16)
    assert probe_video(folder / "sound.mp4").has_audio
    made = retake(demo_bundle, silent, folder / "still.mp4", *window, "--no-regenerate-audio")
    assert made.keys() == {"stage_1.video"}
    assert not probe_video(folder / "still.mp4").has_audio


def test_guided(demo_bundle: Path, folder: Path, source: Path, both: dict[str, np.ndarray]) -> None:
    made = retake(
        demo_bundle, source, folder / "guided.mp4", "--num-inference-steps", 1,
        pipeline="retake-guided",
    )  # fmt: skip
    np.testing.assert_allclose(
        made["stage_1.video"][:, :, :2], both["stage_1.video"][:, :, :2], atol=1e-5
    )
    assert np.abs(made["stage_1.video"] - both["stage_1.video"]).max() > 1e-3


def test_source_of_any_size_and_length(demo_bundle: Path, folder: Path) -> None:
    source = video_file(folder / "any.mp4", 22, 70, 90)
    same = retake(demo_bundle, source, folder / "any-kept.mp4", "--no-regenerate-video")
    assert same["stage_1.video"].shape[2:] == (4, 3, 3)
    info = probe_video(folder / "any-kept.mp4")
    assert (info.num_frames, info.height, info.width) == (22, 70, 90)
    # what is kept is the picture as the VAE gives it back: the source at the top and left
    with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(demo_bundle)) as pipe:
        frames = np.pad(read_video_frames(source), ((0, 3), (0, 0), (0, 0), (0, 0)), mode="edge")
        pixels = to_vae_input(resize_and_pad(frames, 96, 96))
        want = pipe.engines.video_encoder().encode(pixels)
    np.testing.assert_allclose(same["stage_1.video"], want, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--start-time", 0.4), ["needs --video"]),
        (("--video", "ok.mp4", "--start-time", 0.4), ["needs --end-time"]),
        (("--video", "none.mp4", *WINDOW), ["none.mp4", "there is no such file"]),
        (("--video", "tone.wav", *WINDOW), ["the file has no video stream"]),
        (
            ("--video", "odd.mkv", *WINDOW),
            ["the source 'odd.mkv' has 64x47 pixels, an odd side", "crop it"],
        ),
        (
            ("--video", "ok.mp4", "--start-time", 0.5, "--end-time", 0.5),
            ["--start-time=0.5 and --end-time=0.5"],
        ),
        (
            ("--video", "ok.mp4", "--start-time", 0.5, "--end-time", 0.6),
            ["--start-time=0.5 lies behind the end", "lasts 0.375 s"],
        ),
        (
            ("--video", "ok.mp4", *WINDOW, "--no-regenerate-video", "--no-regenerate-audio"),
            ["neither video nor audio"],
        ),
        (
            ("--video", "ok.mp4", *WINDOW, "--height", 64, "--frame-rate", 24),
            ["no use for --height", "no use for --frame-rate"],
        ),
        (
            ("--video", "ok.mp4", *WINDOW, "--negative-prompt", "x"),
            ["no use for --negative-prompt", "it is not guided"],
        ),
        (
            ("--video", "ok.mp4", *WINDOW, "--no-regenerate-audio", "--audio-output", "x.wav"),
            ["--audio-output is for clips with sound; this one has none"],
        ),
        (
            ("--video", "ok.mp4", *WINDOW, "--save-latents", "ok.mp4"),
            ["ok.mp4' is what the clip is made from; choose another name"],
        ),
    ],
)
def test_refused_before_anything_is_loaded(
    flags: tuple[object, ...],
    parts: list[str],
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    mono_file(tmp_path / "tone.wav", 0.5)
    video_file(tmp_path / "ok.mp4", 9, sound=False)
    odd_file(tmp_path / "odd.mkv", 64, 47)
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(tmp_path):
        outcome = run(
            "generate", demo_bundle, "--pipeline", "retake", "--prompt", "a", *flags, "-o", "x.mp4"
        )
        expect_user_error(outcome, *parts)
