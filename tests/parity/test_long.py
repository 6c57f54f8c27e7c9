"""Clips that go on from others, long clips of windows, and clips that are joined."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.config import GenerationConfig, NeighbourClip, RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.media.image import to_vae_input
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.one_stage import OneStagePipeline
from ltx2rt.results.joined import Stretch, join_clips, write_joined
from ltx2rt.results.record import record_in
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.media_files import video_file

THREADS = ("--threads", 1)
SHARED = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return video_file(folder / "source.mp4", 33, 64, 64)


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[DistilledPipeline]:
    runtime = RuntimeConfig(threads=1, residency="resident")
    with DistilledPipeline(open_bundle(demo_bundle), runtime) as pipeline:
        yield pipeline


def test_a_clip_between_two_begins_and_ends_with_them(
    pipe: DistilledPipeline, source: Path, folder: Path
) -> None:
    near = NeighbourClip(path=source, frames=SHARED)
    clip = pipe(prompt="a", after=near, before=near, num_frames=41)
    assert (clip.height, clip.width, clip.frame_rate) == (64, 64, 24)  # the neighbour's
    frames = read_video_frames(source).astype(np.float32)
    encoder = pipe.engines.video_encoder()
    for stage, size in (("stage_1.video", 32), ("stage_2.video", 64)):
        made = clip.latents[stage]
        if size == 64:  # the last frames of the clip before
            want = encoder.encode(to_vae_input(frames[-SHARED:]))
            np.testing.assert_allclose(made[:, :, :2], want, atol=1e-4)
            # and the first 8 of the clip after, behind a still lead
            lead = np.repeat(frames[:1], 9, axis=0)
            want = encoder.encode(to_vae_input(np.concatenate([lead, frames[: SHARED - 1]])))
            np.testing.assert_allclose(made[:, :, -1:], want[:, :, -1:], atol=1e-4)
        between = made[:, :, 2:-1]
        assert between.std() > 0.1
    wave, rate = read_audio(source)
    start = wave[:, rate : rate + round(SHARED / 24 * rate)]
    want = pipe.engines.audio_encoder()(start, rate)[:, :, :9]
    for stage in ("stage_1.audio", "stage_2.audio"):
        np.testing.assert_allclose(clip.latents[stage][:, :, :9], want, atol=1e-4)

    clip.save(folder / "between.mp4", joined=True)
    info = probe_video(folder / "between.mp4")
    assert info.num_frames == 33 + 41 + 33 - SHARED - (SHARED - 1)
    written = read_video_frames(folder / "between.mp4").astype(np.float32)
    outside = np.r_[0 : 33 - SHARED]
    assert np.abs(written[outside] - frames[outside]).mean() < 4  # encoded twice
    assert np.abs(written[-(33 - SHARED + 1) :] - frames[SHARED - 1 :]).mean() < 4
    wave, own_rate = read_audio(folder / "between.mp4")
    assert abs(wave.shape[1] / own_rate - info.num_frames / 24) < 0.06


def test_what_is_new_depends_on_what_was_before(demo_bundle: Path, source: Path) -> None:
    runtime = RuntimeConfig(threads=1)
    with OneStagePipeline(open_bundle(demo_bundle), runtime) as pipe:
        ask = GenerationConfig(prompt="a", height=64, width=64, num_frames=17, sigmas=(1.0, 0.5, 0))
        alone = pipe(ask)
        near = NeighbourClip(path=source, frames=SHARED)
        after = pipe(prompt="a", after=near, num_frames=17, sigmas=(1.0, 0.5, 0))
    assert np.abs(after.latents["stage_1.video"] - alone.latents["stage_1.video"]).max() > 1e-2


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--after", "in.mp4@10"), ["frames=10 to share with", "is not 8k+1"]),
        (("--after", "in.mp4@x"), ["is not FILE[@FRAMES]"]),
        (("--after", "none.mp4"), ["none.mp4", "no such file"]),
        (("--after", "in.mp4@25"), ["'in.mp4' has 9 frames", "fewer than the 25"]),
        (("--after", "in.mp4@9", "--num-frames", 9), ["--num-frames=9 counts the 9 frames"]),
        (("--joined",), ["--joined needs a clip of --after or --before"]),
        (
            ("--after", "in.mp4@9", "--num-frames", 17, "--joined", "--frames", "d"),
            ["--joined writes one video"],
        ),
        (
            ("--pipeline", "text-to-audio", "--after", "in.mp4@9"),
            ["it has no use for --after"],
        ),
    ],
)
def test_neighbours_are_checked_before_work(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[object, ...],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    video_file(tmp_path / "in.mp4", 9)
    with unchanged(tmp_path):
        expect_user_error(
            run("generate", demo_bundle, "--prompt", "a", *flags, "-o", "x.mp4"), *parts
        )


def plan(folder: Path, **changed: object) -> Path:
    """Three segments with prompts, seeds and an image of their own."""
    segments: list[dict[str, object]] = [
        {"prompt": "a lake"}, {"prompt": "a boat", "seed": 7}, {"prompt": "a bell"},
    ]  # fmt: skip
    size = {"height": 64, "width": 64, "num_frames": 25}
    data = {**size, "seed": 3, "segments": segments, **changed}
    path = folder / "plan.json"
    path.write_text(json.dumps(data))
    return path


def test_long_clip_and_going_on(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut off in its last segment goes on to the same bits, and seams do not show."""
    ask = ("long", demo_bundle, plan(tmp_path), "--overlap", SHARED, *THREADS, "--codec", "ffv1")
    whole = tmp_path / "whole.mkv"
    outcome = run(*ask, "-o", whole)
    assert outcome.code == 0, outcome.err
    assert "57 frames of 64x64" in outcome.out
    assert "segment 3 of 3" in outcome.err
    windows = sorted((tmp_path / "whole.mkv.work").iterdir())
    assert [w.name for w in windows] == [f"window-{i:04d}.mkv" for i in (1, 2, 3)]
    records = [record_in(w).request.config for w in windows]
    assert [r.seed for r in records] == [3, 7, 5]
    assert [r.prompt for r in records] == ["a lake", "a boat", "a bell"]
    assert [r.after and r.after.path for r in records] == [None, windows[0], windows[1]]

    with monkeypatch.context() as patch:
        saves: list[Path] = []

        def cut_off(clip: object, path: Path, **_: object) -> None:
            saves.append(path)
            if len(saves) == 3:
                raise KeyboardInterrupt
            save(clip, path, **_)

        from ltx2rt.results.clip import Clip

        save = Clip.save
        patch.setattr(Clip, "save", cut_off)
        stopped = run(*ask, "-o", tmp_path / "again.mkv")
    assert stopped.code == 130
    assert "go on with --resume" in stopped.err
    assert not (tmp_path / "again.mkv").exists()
    outcome = run(*ask, "-o", tmp_path / "again.mkv", "--resume")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("kept from before") >= 2
    assert (tmp_path / "again.mkv").read_bytes() == whole.read_bytes()

    frames = read_video_frames(whole).astype(np.float32)
    jumps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    seams = np.r_[16 : 16 + SHARED + 1, 32 : 32 + SHARED + 1] - 1
    inside = np.delete(jumps, seams)
    assert jumps[seams].max() <= inside.max()  # seams measured 0.55 of it
    wave, rate = read_audio(whole)
    step = rate // 24
    loud = [np.sqrt((wave[:, i * step : (i + 1) * step] ** 2).mean()) for i in range(57)]
    jumps = np.abs(np.diff(loud))
    assert jumps[seams].max() <= 1.5 * np.delete(jumps, seams).max()


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"segments": []}, ["needs a list `segments`"]),
        ({"segments": [{"prompt": "a"}, {"promt": "b"}]}, ["segment 2", "prompt"]),
        ({"segments": [{"prompt": "a", "output": "x.mp4"}]}, ["output cannot be used in a plan"]),
        (
            {"segments": [{"prompt": "a"}, {"prompt": "b", "height": 128}]},
            ["segment 2: height 128 is not the 64 of the first one"],
        ),
        ({"num_frames": 17}, ["17 frames are not more than the 18"]),
        (
            {"segments": [{"prompt": "a"}, {"pipeline": "upscale", "source": "x.mp4"}]},
            ["segment 2"],
        ),
    ],
)
def test_plans_are_checked_before_work(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, object],
    parts: list[str],
) -> None:
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    path = plan(tmp_path, **changed)
    with unchanged(tmp_path):
        outcome = run("long", demo_bundle, path, "--overlap", SHARED, "-o", tmp_path / "x.mp4")
        expect_user_error(outcome, *parts)


def test_join(tmp_path: Path) -> None:
    """Shared frames fade from the one to the other, the others stay as they are."""
    one, two = video_file(tmp_path / "a.mp4", 12, 64, 96), video_file(tmp_path / "b.mp4", 10)
    outcome = run("join", one, two, "-o", tmp_path / "c.mkv", "--overlap", 4, "--codec", "ffv1")
    assert outcome.code == 0, outcome.err
    got = read_video_frames(tmp_path / "c.mkv").astype(np.float32)
    first = read_video_frames(one).astype(np.float32)
    assert got.shape == (18, 64, 96, 3)
    np.testing.assert_array_equal(got[:8], first[:8])
    assert np.abs(got[8] - first[8]).mean() < np.abs(got[11] - first[11]).mean()
    wave, rate = read_audio(tmp_path / "c.mkv")
    assert abs(wave.shape[1] - 18 / 24 * rate) <= 1
    want, _ = read_audio(one)
    np.testing.assert_allclose(wave[:, :10000], want[:, :10000], atol=1e-4)
    assert join_clips([one, two], tmp_path / "d.mp4") == 22
    for arguments, part in (
        ((one,), f"'{one}' alone cannot be joined; name two or more clips"),
        ((one, two, "--overlap", -1), "clips cannot share -1 frames"),
        ((one, two, "--overlap", 11), "'" + str(two) + "' has 10 frames"),
        ((one, two, "--codec", "vp9"), "--codec=vp9 does not go into"),
    ):
        expect_user_error(run("join", *arguments, "-o", tmp_path / "e.mp4"), part)
        assert not (tmp_path / "e.mp4").exists()


def test_stretches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    frames = np.zeros((3, 64, 64, 3), np.float32)
    parts = [Stretch(frames=[frames], num_frames=3, sound=None, shared_after=2),
             Stretch(frames=[frames], num_frames=3, sound=None, shared_before=1)]  # fmt: skip
    with pytest.raises(OptionError, match="cannot share 1 with the one before it, which shares 2"):
        write_joined(tmp_path / "x.mp4", parts, 64, 64, 24.0, None)
    assert not list(tmp_path.iterdir())
