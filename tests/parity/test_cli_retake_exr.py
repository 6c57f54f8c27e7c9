"""`ltx2rt generate --pipeline retake` of a folder of EXR frames, on the demo bundle."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.config import RuntimeConfig
from ltx2rt.media.exr import ExrFolder, exr_files
from ltx2rt.media.hdr import HDR_FORMATS
from ltx2rt.media.reader import probe_video
from ltx2rt.media.sound import read_audio
from ltx2rt.pipelines.retake import RetakePipeline
from ltx2rt.results.record import record_in
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import Outcome, expect_user_error, instead, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.media_files import video_file

pytest.importorskip("OpenEXR")

#: of nine frames the second latent frame, which covers all but the first
WINDOW = ("--start-time", 0.2, "--end-time", 0.3)
RATE = 24000 / 1001


def exr_source(folder: Path, count: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames of a lamp of eight times diffuse white that moves over a gradient."""
    rows = np.linspace(0.05, 0.8, height)[:, None, None] * np.array([1, 0.7, 0.4])
    frames = np.repeat(np.broadcast_to(rows, (height, width, 3))[None], count, axis=0)
    for index in range(count):
        frames[index, 10:20, 4 * index : 4 * index + 10] = 8
    frames = frames.astype(np.float16).astype(np.float32)
    with ExrFolder(folder, HDR_FORMATS["ACESCG"].exr_attributes) as writer:
        writer.write(frames)
    return frames


def retake(bundle: Path, *flags: object) -> Outcome:
    return run(
        "generate", bundle, "--pipeline", "retake", "--prompt", "a bell", "--threads", 1,
        *instead(*WINDOW, *flags),
    )  # fmt: skip


def test_a_folder_of_exr_frames(demo_bundle: Path, tmp_path: Path) -> None:
    light = exr_source(tmp_path / "take")
    target, saved = tmp_path / "out.mp4", tmp_path / "out.safetensors"
    outcome = retake(
        demo_bundle, "--video", tmp_path / "take", "--video-frame-rate", RATE, "--hdr", "ACESCG",
        "-o", target, "--save-latents", saved, "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert f"{target}: 9 frames of 96x64 at 23.976 fps" in outcome.out
    maps = MappedFiles()
    latents = {name: maps.raw(entry) for name, entry in SafetensorsFile(saved).items()}
    codes = HDR_FORMATS["ACESCG"].encode(light)
    with RetakePipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        source = pipe.engines.video_encoder().encode(np.moveaxis(2 * codes - 1, -1, 0)[None])
    found = latents["stage_1.video"]
    np.testing.assert_allclose(found[:, :, :1], source[:, :, :1], atol=1e-4)  # see test_cli_retake
    assert np.abs(found[:, :, 1:] - source[:, :, 1:]).max() > 1e-2
    # 9 frames at 23.976 fps are 0.375 s of sound: 9 steps of 0.04 s
    assert latents["stage_1.audio"].shape == (1, 8, 9, 16)
    assert len(exr_files(tmp_path / "out_exr")) == 9
    info = probe_video(target)
    assert (info.width, info.height, info.num_frames, info.has_audio) == (96, 64, 9, True)
    assert str(info.frame_rate) == "24000/1001"
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.color_trc == 18  # HLG
    record = record_in(target)
    assert record.request.inputs.video_frame_rate == RATE
    assert record.request.config.hdr == "ACESCG"


def test_an_ordinary_source_may_become_one_of_high_range(demo_bundle: Path, tmp_path: Path) -> None:
    source, target = video_file(tmp_path / "in.mp4", 9, 64, 64), tmp_path / "out.mp4"
    outcome = retake(
        demo_bundle, "--video", source, "--hdr", "ACESCCT", "--no-regenerate-audio",
        "-o", target, "--audio-output", tmp_path / "out.wav", "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(exr_files(tmp_path / "out_exr")) == 9
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.color_trc == 18  # HLG
    kept, rate = read_audio(tmp_path / "out.wav")
    want, _ = read_audio(source, 0.0, 9 / 24)
    assert rate == 44100
    np.testing.assert_allclose(kept, want, atol=2 / 32768)


def test_no_sound_where_none_is_made(demo_bundle: Path, tmp_path: Path) -> None:
    exr_source(tmp_path / "take", count=1, width=64)
    common = ("--video", tmp_path / "take", "--video-frame-rate", 10, "--hdr", "SRGB_LINEAR")
    silent = (*common, "--start-time", 0, "--end-time", 0.1, "--no-regenerate-audio")
    outcome = retake(demo_bundle, *silent, "-o", tmp_path / "x.wav")
    expect_user_error(outcome, "'.wav' is not allowed here")
    outcome = retake(demo_bundle, *silent, "-o", tmp_path / "x.mp4", "--quiet")
    assert outcome.code == 0, outcome.err
    info = probe_video(tmp_path / "x.mp4")
    assert (info.num_frames, info.has_audio, float(info.frame_rate)) == (1, False, 10.0)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ("--video", "take_exr"),
            ["take_exr is of high dynamic range; say what it holds with --hdr",
             "EXR frames have no frame rate: give --video-frame-rate"],
        ),
        (
            ("--video", "take_exr/frame_00000.exr", "--video-frame-rate", 24, "--hdr", "acescg"),
            ["is an EXR still; a video is a folder of them"],
        ),
        (
            ("--video", "ok.mp4", "--video-frame-rate", 24),
            ["--video-frame-rate is for a folder of .exr frames: leave it out"],
        ),
        (
            ("--video", "take_exr", "--video-frame-rate", 0, "--hdr", "acescg"),
            ["--video-frame-rate=0.0 is not in [1, 240]"],
        ),
        (
            ("--video", "take_exr", "--video-frame-rate", 60, "--hdr", "acescg"),
            ["--start-time=0.2 lies behind the end of 'take_exr', which lasts 0.150 s"],
        ),
        (
            ("--video", "odd", "--video-frame-rate", 24, "--hdr", "acescg"),
            ["--start-time=0.2 lies behind the end of 'odd', which lasts 0.125 s"],
        ),
        (
            ("--video", "mixed", "--video-frame-rate", 24, "--hdr", "acescg"),
            ["b.exr' has 32x32 pixels, the frames before it have another size"],
        ),
        (
            ("--video", "empty", "--video-frame-rate", 24, "--hdr", "acescg"),
            ["--video-frame-rate is for a folder of .exr frames"],
        ),
        (("--video", "empty", "--hdr", "acescg"), ["from 'empty': it is a directory"]),
        (
            ("--video", "take_exr", "--video-frame-rate", 24, "--hdr", "acescg", "-o", "take.mp4"),
            ["'take_exr': the directory is not empty"],
        ),
        (
            ("--video", "take_exr", "--video-frame-rate", 24, "--hdr", "acescg", "--frames", "f"),
            ["goes to an ordinary file"],
        ),
    ],
)  # fmt: skip
def test_refused_before_anything_is_loaded(
    flags: tuple[object, ...],
    parts: list[str],
    demo_bundle: Path,
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(sources)
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(sources):
        expect_user_error(retake(demo_bundle, *instead("-o", "x.mp4", *flags)), *parts)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    exr_source(folder / "take_exr")
    exr_source(folder / "odd", count=3, height=48)
    exr_source(folder / "mixed", count=1, height=64)
    exr_source(folder / "small", count=1, height=32, width=32)
    (folder / "small/frame_00000.exr").rename(folder / "mixed/other_b.exr")
    video_file(folder / "ok.mp4", 9, sound=False)
    (folder / "empty").mkdir()
    return folder
