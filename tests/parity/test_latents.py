"""Latents in files: decoded again in another way, and taken as the first stage of another clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import RuntimeConfig
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.kept import open_latents
from ltx2rt.results.latent_file import LatentFile
from ltx2rt.results.record import record_in
from ltx2rt.sampling.gpu_noise import make_generator
from ltx2rt.weights.safetensors_writer import write_safetensors
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.media_files import sound_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def kept(demo_bundle: Path, folder: Path) -> Path:
    """A clip of 58x90 with given sound, and its latents."""
    sound = sound_file(folder / "a.wav", 0.5)
    outcome = run(
        "generate", demo_bundle, "--prompt", "a", "--seed", 3, "--size", "90x58", "--audio", sound,
        "--num-frames", 9, "--threads", 1, "--quiet", "-o", folder / "a.mp4",
        "--save-latents", folder / "a.safetensors",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return folder / "a.safetensors"


def test_decoded_again_it_is_the_same_file(demo_bundle: Path, kept: Path, folder: Path) -> None:
    """Also its cut, its sound and its record; another output and another stage on demand."""
    outcome = run("decode", demo_bundle, kept, "--threads", 1, "-o", folder / "b.mp4", "--quiet")
    assert outcome.code == 0, outcome.err
    assert "9 frames of 90x58" in outcome.out
    assert (folder / "b.mp4").read_bytes() == (folder / "a.mp4").read_bytes()
    outcome = run(
        "decode", demo_bundle, kept, "--stage", "stage_1", "-o", folder / "half.mkv", "--quiet",
        "--codec", "ffv1", "--tiling", "none", "--audio-output", folder / "c.wav", "--threads", 1,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    info = probe_video(folder / "half.mkv")
    assert (info.height, info.width) == (32, 64)
    assert record_in(folder / "half.mkv").request.config.tiling == "none"
    assert read_audio(folder / "c.wav")[1] == 44100
    with open_latents(open_bundle(demo_bundle), kept, runtime=RuntimeConfig(threads=1)) as clip:
        frames = np.concatenate(list(clip.frames))
    shown = read_video_frames(folder / "a.mp4").astype(float)
    assert np.abs(frames - shown).mean() < 12  # H.264 of noise


def test_a_first_stage_is_taken_over(demo_bundle: Path, kept: Path, folder: Path) -> None:
    """With the same request the rest is made bit by bit as it was; another seed changes it."""
    same = ("--prompt", "a", "--audio", folder / "a.wav", "--threads", 1, "--latents", kept)
    made: dict[int, dict[str, np.ndarray]] = {}
    for seed in (3, 4):
        target = folder / f"again-{seed}.safetensors"
        outcome = run(
            "generate",
            demo_bundle,
            *same,
            "--seed",
            seed,
            "--save-latents",
            target,
        )
        assert outcome.code == 0, outcome.err
        assert "stage_1: 1/1" in outcome.err
        file = LatentFile(target)
        made[seed] = {n: file.read(f"{n}.video") for n in file.stages if n != "sound"}
        assert file.record.request.config.height == 58
    want = LatentFile(kept)
    for stage in ("stage_1", "stage_2"):
        np.testing.assert_array_equal(made[3][stage], want.read(f"{stage}.video"))
    np.testing.assert_array_equal(made[4]["stage_1"], made[3]["stage_1"])
    assert np.abs(made[4]["stage_2"] - made[3]["stage_2"]).max() > 1e-3


@pytest.mark.parametrize(
    ("command", "flags", "parts"),
    [
        ("decode", ("--stage", "stage_3"), ["holds no latents of stage_3; it has", "stage_2"]),
        ("decode", ("--tiling", "8x8"), ["a tile size of 8 is not"]),
        ("generate", ("--size", "256x256"), ["the first stage of this clip has 4x4"]),
        ("generate", ("--num-frames", 17), ["shape (1, 128, 2, 1, 2)", "(1, 128, 3, 1, 2)"]),
        ("generate", ("--pipeline", "one-stage"), ["--latents is for pipelines of two stages"]),
    ],
)
def test_what_does_not_fit_is_refused(
    demo_bundle: Path,
    kept: Path,
    tmp_path: Path,
    command: str,
    flags: tuple[Any, ...],
    parts: list[str],
) -> None:
    before = (kept,) if command == "decode" else ("--prompt", "a", "--latents", kept)
    with unchanged(tmp_path):
        outcome = run(command, demo_bundle, *before, *flags, "-o", tmp_path / "x.mp4", "--quiet")
        expect_user_error(outcome, *parts)


def test_other_files_are_refused(demo_bundle: Path, demo_model: dict[str, Path]) -> None:
    outcome = run("decode", demo_bundle, demo_model["checkpoint"], "-o", "x.mp4")
    expect_user_error(outcome, "does not say how it was made")


@pytest.fixture(scope="module")
def cached(kept: Path, folder: Path) -> Path:
    """The first stage of the clip as musubi-tuner keeps latents."""
    file, target = LatentFile(kept), folder / "a_00000-009_0064x0032_ltx2.safetensors"
    video, audio = (file.read(f"stage_1.{part}")[0] for part in ("video", "audio"))
    write_safetensors(
        target, {"latents_{}x{}x{}_float32".format(*video.shape[1:]): video},
        {"architecture": "ltx2_v1"},
    )  # fmt: skip
    channels, time, mel = audio.shape
    write_safetensors(
        target.with_name(target.name.replace("_ltx2", "_ltx2_audio")),
        {f"audio_latents_{time}x{mel}x{channels}_float32": audio, "audio_lengths_int32": LENGTH},
        {},
    )
    return target


LENGTH = np.array(9, np.int32)


def test_latents_of_a_trainer_are_decoded(
    demo_bundle: Path, kept: Path, cached: Path, folder: Path
) -> None:
    bundle, runtime = open_bundle(demo_bundle), RuntimeConfig(threads=1)
    with open_latents(bundle, kept, stage="stage_1", runtime=runtime) as clip:
        want = np.concatenate(list(clip.frames))
    with open_latents(bundle, cached, frame_rate=12.0, runtime=runtime) as clip:
        np.testing.assert_array_equal(np.concatenate(list(clip.frames)), want)
        assert clip.frame_rate == 12.0
        assert clip.audio is not None
    outcome = run(
        "decode", demo_bundle, cached, "-o", folder / "t.mp4", "--quiet", "--threads", 1,
        "--frame-rate", 12,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    info = probe_video(folder / "t.mp4")
    assert (info.height, info.width, info.num_frames, float(info.frame_rate)) == (32, 64, 9, 12)


def test_latents_of_a_trainer_are_a_first_stage(
    demo_bundle: Path, kept: Path, cached: Path, folder: Path
) -> None:
    target = folder / "refined.safetensors"
    outcome = run(
        "generate", demo_bundle, "--prompt", "a", "--latents", cached, "--threads", 1, "--quiet",
        "--save-latents", target,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    file = LatentFile(target)
    assert file.record.request.config.width == 128
    np.testing.assert_array_equal(
        file.read("stage_1.video"), LatentFile(kept).read("stage_1.video")
    )


def test_other_latents_of_trainers_are_refused(
    demo_bundle: Path, kept: Path, cached: Path, tmp_path: Path
) -> None:
    target = tmp_path / "b_ltx2.safetensors"
    write_safetensors(target, {"latents_2x1x2_float32": np.zeros((128, 2, 2, 2), np.float32)}, {})
    with unchanged(tmp_path):
        out = ("-o", tmp_path / "x.mp4")
        outcome = run("decode", demo_bundle, target, *out)
        expect_user_error(outcome, "is damaged: latents_2x1x2_float32 is float32 [128, 2, 2, 2]")
        outcome = run("decode", demo_bundle, kept, *out, "--frame-rate", 12)
        expect_user_error(outcome, "says its frame rate, which is 24; leave it out")
        outcome = run(
            "generate", demo_bundle, "-p", "a", "--latents", cached, "--frame-rate", 8, *out
        )
        expect_user_error(outcome, "the audio of stage_1 in")


def test_noise_of_a_gpu(demo_bundle: Path, folder: Path) -> None:
    """Every stage and sampler draws from it; the record, latents in a file and a job keep it."""
    small = {"prompt": "a", "seed": 3, "height": 64, "width": 64, "num_frames": 9}
    samplers = {"sampler": "euler_ancestral", "stage_2_sampler": "res_2s"}
    first, noises = StageTrace(), ("cpu", "h100", "b200")
    with pipeline_class("distilled")(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        clips = [
            pipe(**small, **samplers, noise=noise, trace=first if noise == "h100" else None)
            for noise in noises
        ]
    cpu, gpu, other = (clip.latents for clip in clips)
    start = first.tensors["stage_1.video.x0"]
    np.testing.assert_array_equal(start, make_generator(3, "h100").randn(start.shape))
    for name, latent in gpu.items():
        assert not np.array_equal(latent, cpu[name]), name
        np.testing.assert_array_equal(latent, other[name])  # fewer values than either has threads
    clips[1].save_latents(folder / "gpu.safetensors")
    state = LatentFile(folder / "gpu.safetensors").generator("stage_1")
    assert state is not None
    assert state[2] == 8  # picture and sound
    flags = ("--threads", 1, "--quiet", "--latents", folder / "gpu.safetensors")
    outcome = run("generate", demo_bundle, "--prompt", "a", "--seed", 3, "--noise", "h100",
                  "--stage-2-sampler", "res-2s", *flags, "-o", folder / "g.mp4",
                  "--save-latents", folder / "again.safetensors")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert record_in(folder / "g.mp4").request.config.noise == "h100"
    again = LatentFile(folder / "again.safetensors").read("stage_2.video")
    np.testing.assert_array_equal(again, gpu["stage_2.video"])
