"""`ltx2rt generate` on the demo bundle: what is written, and that it is the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.results.record import record_in
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import SMALL, Outcome, expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run

PROMPT = 'né ☂ 🌊 "a=b;c\\d"\nsecond line'
RATE = 24.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def made(demo_bundle: Path, folder: Path) -> Outcome:
    """One run with everything that it can write; read-only to tests."""
    return run(
        "generate", demo_bundle, "--prompt", PROMPT, "--seed", 7, *SMALL, "--json",
        "-o", folder / "a.mp4",
        "--audio-output", folder / "a.wav",
        "--save-latents", folder / "a.safetensors",
        "--trace", folder / "trace.json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    path = folder / "photo@1.png"
    Image.fromarray(np.full((48, 80, 3), (250, 20, 20), np.uint8)).save(path)
    return path


def latents(path: Path) -> dict[str, np.ndarray]:
    maps = MappedFiles()
    return {name: maps.raw(entry).copy() for name, entry in SafetensorsFile(path).items()}


def test_json_on_stdout_progress_on_stderr(made: Outcome, demo_bundle: Path, folder: Path) -> None:
    assert made.code == 0
    report = made.json
    assert report.pop("timings_s").keys() == {
        "prompt", "stage_1", "upsample", "stage_2", "decode audio", "decode video",
    }  # fmt: skip
    assert report == {
        "output": str(folder / "a.mp4"),
        "prompt": PROMPT,
        "pipeline": "distilled",
        "seed": 7,
        "num_frames": 9,
        "height": 64,
        "width": 64,
        "frame_rate": RATE,
        "bundle": read_manifest(demo_bundle).bundle_id,
        "ltx2rt_version": ltx2rt.__version__,
    }
    lines = made.err.splitlines()
    assert any(line.startswith("stage_1: 8/8") for line in lines)
    assert any(line.startswith("stage_2: 3/3") for line in lines)
    assert any(line.startswith("decode video: 1/1") for line in lines)


def test_clip_is_as_asked(made: Outcome, folder: Path) -> None:
    info = probe_video(folder / "a.mp4")
    assert (info.width, info.height, info.num_frames) == (64, 64, 9)
    assert float(info.frame_rate) == RATE
    frames = read_video_frames(folder / "a.mp4")
    assert frames.shape == (9, 64, 64, 3)
    assert frames.std() > 1  # a picture, not one colour
    sound, rate = read_audio(folder / "a.mp4")
    assert sound.shape[0] == 2
    # AAC decodes to whole blocks of 1024 samples
    assert 0 <= sound.shape[1] - info.duration_s * rate < 1024
    assert np.abs(sound).max() > 0


def test_streams_are_equally_long(made: Outcome, folder: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(folder / "a.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        seconds = [float(s.duration * s.time_base) for s in (video, audio)]
    assert seconds == pytest.approx([9 / RATE, 9 / RATE], abs=1 / 48000)


def test_tags_tell_how_to_make_it_again(made: Outcome, folder: Path) -> None:
    tags = probe_video(folder / "a.mp4").metadata
    want = {k: str(v) for k, v in made.json.items() if k not in ("output", "timings_s")}
    assert want.items() <= tags.items()
    assert tags["prompt"] == PROMPT
    assert SafetensorsFile(folder / "a.safetensors").metadata["prompt"] == PROMPT


def test_sound_file_is_the_whole_waveform(made: Outcome, folder: Path) -> None:
    wave, rate = read_audio(folder / "a.wav")
    inside, inside_rate = read_audio(folder / "a.mp4")
    assert rate == inside_rate
    assert wave.shape[0] == 2
    # a latent frame is four spectrogram frames (the first is one) of 10 ms
    mel_frames = 4 * latents(folder / "a.safetensors")["stage_2.audio"].shape[2] - 3
    assert wave.shape[1] == mel_frames * rate // 100
    shared = min(wave.shape[1], inside.shape[1])
    # AAC of noise is coarse (0.86 measured), but it is the same sound at the same time
    assert np.corrcoef(wave[:, :shared].ravel(), inside[:, :shared].ravel())[0, 1] > 0.7


def test_latents_of_every_stage(made: Outcome, folder: Path) -> None:
    saved = latents(folder / "a.safetensors")
    shapes = {name: value.shape for name, value in saved.items()}
    assert shapes["stage_1.video"] == (1, 128, 2, 1, 1)
    assert shapes["upsampled.video"] == shapes["stage_2.video"] == (1, 128, 2, 2, 2)
    assert shapes["stage_1.audio"] == shapes["stage_2.audio"]
    assert all(np.isfinite(v).all() and v.std() > 0 for v in saved.values())


def test_a_trace_of_all_work(made: Outcome, folder: Path) -> None:
    document = json.loads((folder / "trace.json").read_text())
    totals = {row["stage"]: row for row in document["stageTotals"]}
    assert totals.keys() == made.json["timings_s"].keys()
    stage = totals["stage_2"]
    assert 0 <= stage["residual_s"] < stage["total_s"]
    assert stage["engines on the host_s"] > 0.2 * stage["total_s"]
    names = [e["name"] for e in document["traceEvents"] if e["ph"] == "X"]
    assert sum(n.startswith("transformer_block") for n in names) == 11 * 3
    assert "stage_1 8/8" in names
    assert "frame 9" in names


def test_seed_decides(made: Outcome, demo_bundle: Path, folder: Path) -> None:
    common = ("generate", demo_bundle, "--prompt", PROMPT, *SMALL, "--quiet")
    again = run(
        *common, "--seed", 7, "-o", folder / "b.mp4", "--save-latents", folder / "b.safetensors"
    )
    other = run(
        *common, "--seed", 8, "-o", folder / "c.mp4", "--save-latents", folder / "c.safetensors"
    )
    assert (again.code, again.err, other.code) == (0, "", 0)
    assert "9 frames of 64x64 at 24 fps, seed 7" in again.out
    first = (folder / "a.safetensors").read_bytes()
    assert (folder / "b.safetensors").read_bytes() == first
    assert (folder / "b.mp4").read_bytes() == (folder / "a.mp4").read_bytes()
    one, two = latents(folder / "a.safetensors"), latents(folder / "c.safetensors")
    assert all(np.abs(one[name] - two[name]).max() > 1e-3 for name in one)


def test_image_changes_the_clip(
    made: Outcome, demo_bundle: Path, folder: Path, photo: Path
) -> None:
    outcome = run(
        "generate", demo_bundle, "--prompt", PROMPT, "--seed", 7, *SMALL, "--quiet",
        "--image", f"{photo}@0:1:0", "--image", f"{photo}@8:0.5", "--fragmented",
        "-o", folder / "d.mov", "--save-latents", folder / "d.safetensors",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    plain, shown = latents(folder / "a.safetensors"), latents(folder / "d.safetensors")
    assert np.abs(plain["stage_2.video"] - shown["stage_2.video"]).max() > 1e-3
    assert {n: v.shape for n, v in plain.items()} == {n: v.shape for n, v in shown.items()}
    data = (folder / "d.mov").read_bytes()
    assert b"moof" in data
    assert b"moof" not in (folder / "a.mp4").read_bytes()
    assert probe_video(folder / "d.mov").num_frames == 9


def test_nothing_but_the_outputs_is_left(made: Outcome, folder: Path) -> None:
    assert {p.name for p in folder.glob("a.*")} == {"a.mp4", "a.wav", "a.safetensors"}
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_formats_keep_the_record(demo_bundle: Path, made: Outcome, folder: Path) -> None:
    """One clip in three formats, each of which says how it was made."""
    ask = ("--prompt", "a", "--seed", 4, *SMALL[:4], "--num-frames", 1, "--threads", 1, "--quiet")
    for name, flags in (
        ("a.webm", ("--codec", "av1", "--preset", 9, "--quality", 40)),
        ("a.webp", ("--quality", 90)),
        ("a.png", ()),
    ):
        outcome = run("generate", demo_bundle, *ask, *flags, "-o", folder / name)
        assert outcome.code == 0, outcome.err
        assert record_in(folder / name).request.config.seed == 4
    with Image.open(folder / "a.png") as still, Image.open(folder / "a.webp") as moving:
        pixels = [np.asarray(image.convert("RGB"), np.float32) for image in (still, moving)]
    assert np.abs(pixels[0] - pixels[1]).mean() < 12  # noise is hard on a lossy format


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("-o", "x.mp4", "--codec", "vp9"), ["--codec=vp9 does not go into a .mp4 file"]),
        (("-o", "x.mp4", "--quality", 70), ["--quality=70 of h264 is not in [0, 51]"]),
        (("-o", "x.gif", "--preset", "slow"), ["'x.gif' has no codec, preset or encoder"]),
        (("-o", "x.png"), ["one frame", "(--num-frames 1)", "(--frames DIR)"]),
        (("-o", "x.wav", "--codec", "h264"), ["are for video files of ordinary range"]),
        (("-o", "x.webp", "--stream"), ["--stream is for video, not for 'x.webp'"]),
    ],
)
def test_formats_are_refused_before_any_work(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple,
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(tmp_path):
        expect_user_error(run("generate", demo_bundle, "--prompt", "a", *SMALL, *flags), *parts)
