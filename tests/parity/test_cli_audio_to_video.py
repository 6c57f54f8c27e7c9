"""`ltx2rt generate --pipeline audio-to-video` on the demo bundle: the sound stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ltx2rt.config import GenerationConfig
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.pipelines.soundtrack import with_soundtrack
from ltx2rt.results.record import record_in
from ltx2rt.sampling.guidance import GuiderParams
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import SMALL, Outcome, expect_user_error, instead, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.demo_loras import write_demo_lora
from tests.parity.media_files import RATE, mono_file, sound_file, tone, video_file

START, SECONDS = 0.1, 9 / 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sound")


@pytest.fixture(scope="module")
def flags(demo_bundle: Path, demo_model: dict[str, Path], folder: Path) -> list[object]:
    lora = write_demo_lora(folder / "distilled.safetensors", demo_model, 0)
    return [
        "generate", demo_bundle, "--pipeline", "audio-to-video", "--prompt", "a bell", *SMALL,
        "--num-inference-steps", 2, "--distilled-lora", lora, "--quiet", "--json",
    ]  # fmt: skip


def make(flags: list[object], target: Path, *more: object) -> Outcome:
    outcome = run(
        *flags, *more, "-o", target.with_suffix(".mp4"),
        "--audio-output", target.with_suffix(".wav"),
        "--save-latents", target.with_suffix(".safetensors"),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return outcome


def latents(path: Path) -> dict[str, np.ndarray]:
    file, maps = SafetensorsFile(path.with_suffix(".safetensors")), MappedFiles()
    return {name: maps.raw(entry).copy() for name, entry in file.items()}


@pytest.fixture(scope="module")
def made(flags: list[object], folder: Path) -> Outcome:
    sound = sound_file(folder / "tone.wav", 1.0)
    return make(flags, folder / "a", "--audio", sound, "--audio-start-time", START)


def test_sound_is_kept_bit_true(made: Outcome, folder: Path) -> None:
    wave, rate = read_audio(folder / "a.wav")
    first = round(START * RATE)
    assert rate == RATE
    np.testing.assert_array_equal(wave, tone(1.0)[:, first : first + round(SECONDS * RATE)])
    inside, inside_rate = read_audio(folder / "a.mp4")
    assert inside_rate == RATE
    assert np.corrcoef(wave[0], inside[0, : wave.shape[1]])[0, 1] > 0.99  # AAC of a tone


def test_clip_is_as_asked(made: Outcome, folder: Path) -> None:
    info = probe_video(folder / "a.mp4")
    assert (info.width, info.height, info.num_frames) == (64, 64, 9)
    assert info.duration_s == pytest.approx(SECONDS)
    assert read_video_frames(folder / "a.mp4").std() > 1
    assert made.json["audio_cfg_scale"] == "1.0"


def test_sound_is_context_for_both_stages(made: Outcome, folder: Path) -> None:
    saved = latents(folder / "a")
    np.testing.assert_array_equal(saved["stage_1.audio"], saved["stage_2.audio"])
    assert saved["stage_1.audio"].shape == (1, 8, 9, 16)
    assert saved["stage_1.audio"].std() > 0


def test_mono_is_doubled_and_steers_the_picture(
    made: Outcome, flags: list[object], folder: Path
) -> None:
    mono = mono_file(folder / "one-channel.wav", 0.5)
    make(flags, folder / "mono", "--audio", mono)
    wave, _ = read_audio(folder / "mono.wav")
    np.testing.assert_array_equal(wave, np.repeat(tone(0.5)[:1, : wave.shape[1]], 2, 0))
    assert np.abs(latents(folder / "mono")["stage_2.video"] - latents(folder / "a")["stage_2.video"]
                  ).max() > 1e-4  # fmt: skip


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ((), ["it needs --audio"]),
        (("--audio", "none.wav"), ["none.wav", "there is no such file"]),
        (("--audio", "."), ["it is a directory"]),
        (("--audio", __file__), ["it is a text file"]),
        (("--audio", "silent.mp4"), ["the file has no audio stream"]),
        (("--audio", "odd.wav"), ["sampling_rate=10000 Hz cannot be stored as AAC"]),
        (("--audio", "long.wav", "--audio-start-time", -1), ["--audio-start-time=-1.0"]),
        (
            ("--audio", "long.wav", "--audio-start-time", "nan", "--audio-max-duration", 0),
            ["--audio-start-time=nan", "--audio-max-duration=0.0"],
        ),
        (
            ("--audio", "long.wav", "--num-frames", 33),
            ["--num-frames=33", "than the 1.000 s", "the longest possible is --num-frames=25"],
        ),
        (
            ("--audio", "long.wav", "--audio-max-duration", 0.05),
            ["than the 0.050 s", "the longest possible is --num-frames=1."],
        ),
        (("--audio", "long.wav", "--audio-start-time", 2), ["no sound from 2.0 seconds on"]),
        (("--audio", "long.wav", "--audio-cfg-guidance-scale", 2), ["no guidance for the audio"]),
        (
            ("--audio", "long.wav", "--num-generated-keyframes", 1),
            ["has no use for --num-generated-keyframes"],
        ),
    ],
)
def test_refused_before_anything_is_loaded(
    more: tuple[object, ...],
    parts: list[str],
    flags: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    sound_file(tmp_path / "long.wav", 1.0)
    sound_file(tmp_path / "odd.wav", 1.0, rate=10000)
    video_file(tmp_path / "silent.mp4", 9, sound=False)
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(tmp_path):
        expect_user_error(run(*instead(*flags, *more), "-o", tmp_path / "x.mp4"), *parts)


@pytest.mark.parametrize(
    ("pipeline", "more"),
    [
        ("distilled", ()),
        ("one-stage", ("--video-stg-guidance-scale", 0, "--a2v-guidance-scale", 1)),
        ("two-stage", ()),  # a distilled model needs no LoRA
        ("two-stage-hq", ()),
        ("keyframe", ("--image", "IMAGE@8")),
    ],
)
def test_sound_for_every_pipeline(
    demo_bundle: Path, folder: Path, pipeline: str, more: tuple[object, ...]
) -> None:
    image = folder / "photo.png"
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(image)
    sound = sound_file(folder / "0.8.wav", 0.8)  # 21 latent steps: 17 frames of 24 fps
    ask = ["generate", demo_bundle, "--pipeline", pipeline, "--prompt", "a bell", "--height", 64,
           "--width", 64, "--threads", 1, "--quiet", "--json", "--sigmas", 1, 0.5, 0]  # fmt: skip
    if pipeline != "one-stage":
        ask += ["--stage-2-sigmas", 0.9, 0]
    more = tuple(str(m).replace("IMAGE", str(image)) for m in more)
    made = make([*ask, *more], folder / pipeline, "--audio", sound)
    assert made.json["num_frames"] == 17
    wave, rate = read_audio(folder / f"{pipeline}.wav")
    assert rate == RATE
    np.testing.assert_array_equal(wave, tone(0.8)[:, : round(17 / 24 * RATE)])
    saved = latents(folder / pipeline)
    if pipeline != "one-stage":
        np.testing.assert_array_equal(saved["stage_1.audio"], saved["stage_2.audio"])
    if pipeline in ("two-stage", "distilled"):  # the same passes on the same noise levels
        want = latents(folder / "distilled")["stage_2.video"]
        np.testing.assert_allclose(saved["stage_2.video"], want, atol=1e-4)
    other = latents(folder / "a")["stage_1.audio"]
    assert saved["stage_1.audio"].shape[2] == 18
    assert np.abs(saved["stage_1.audio"][:, :, :9] - other).max() > 5e-5  # other sound
    record = record_in(folder / f"{pipeline}.mp4").request
    assert record.config.audio == sound
    assert record.guidance is None or record.guidance.audio == GuiderParams()


def test_long_sound_is_cut_where_nobody_says_how_long(tmp_path: Path) -> None:
    sound_file(tmp_path / "a.wav", 3.0)
    config = GenerationConfig(
        prompt="a", audio=tmp_path / "a.wav", num_frames=AutoDuration(max_s=1.0)
    )
    source = SimpleNamespace(has=lambda *_: True)
    with pytest.warns(UserWarning, match="goes on after 1 s, where the clip ends"):
        found = with_soundtrack(config, source, VIDEO_SCALE_FACTORS)  # type: ignore[arg-type]
    assert found.num_frames == 25
    short = replace(config, audio_start_time=2.2)
    assert with_soundtrack(short, source, VIDEO_SCALE_FACTORS).num_frames == 17  # type: ignore[arg-type]
