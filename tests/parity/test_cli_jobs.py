"""Steering whole runs on the demo bundle: repeat, several clips, batches, kept stages, streams."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.cli.batch import EXIT_FAILED_JOBS
from ltx2rt.components.text_encoder import PromptEncoder
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT
from ltx2rt.errors import OptionError
from ltx2rt.media.reader import probe_video, read_tags
from ltx2rt.media.sound import read_audio
from ltx2rt.progress import Progress
from ltx2rt.results.record import record_in
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import (
    SMALL,
    Outcome,
    edited_bundle,
    expect_user_error,
    instead,
)
from tests.parity.command_line import ltx2rt as run

GUIDED = (
    "--pipeline", "one-stage", "--prompt", "a lake ☂", "--seed", 5, *SMALL,
    "--sampler", "gradient-estimation", "--sigmas", 1, 0.6, 0.2, 0,
    "--cfg-mode", "apg", "--apg-momentum", 0.5, "--apg-norm-threshold", 20,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def made(demo_bundle: Path, folder: Path) -> Outcome:
    """A guided clip with every kind of output, steered away from all defaults."""
    Image.fromarray(np.full((48, 80, 3), (250, 20, 20), np.uint8)).save(folder / "photo.png")
    outcome = run(
        "generate", demo_bundle, *GUIDED, "--image", f"{folder / 'photo.png'}@0:0.7:0",
        "--max-batch-size", 2, "-o", folder / "a.mp4", "--frames", folder / "a",
        "--audio-output", folder / "a.wav", "--save-latents", folder / "a.safetensors",
        "--save-embeddings", folder / "text.safetensors", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return outcome


def latents(path: Path) -> dict[str, np.ndarray]:
    maps = MappedFiles()
    return {name: maps.raw(entry).copy() for name, entry in SafetensorsFile(path).items()}


def assert_same_latents(one: Path, two: Path) -> None:
    first, second = latents(one), latents(two)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_every_file_says_how_it_was_made(made: Outcome, folder: Path) -> None:
    record = record_in(folder / "a.mp4")
    config, guidance = record.request.config, record.request.guidance
    assert (record.pipeline, record.max_batch_size, record.threads) == ("one-stage", 2, 1)
    assert (config.prompt, config.seed, config.sampler) == ("a lake ☂", 5, "gradient_estimation")
    assert config.images[0].path == folder / "photo.png"
    assert guidance is not None
    assert guidance.video is not None
    assert (guidance.video.cfg_mode, guidance.video.cfg_scale) == ("apg", 3.0)  # filled in
    assert guidance.negative_prompt == DEFAULT_NEGATIVE_PROMPT
    assert record.stages["stage_1"]["sigmas"] == pytest.approx([1, 0.6, 0.2, 0])
    for name in ("a.wav", "a.safetensors", "a/frame_00000.png"):
        assert record_in(folder / name) == record
    assert len(list((folder / "a").iterdir())) == 9
    with pytest.raises(OptionError, match="of frames saved as images the first one says it"):
        record_in(folder / "a/frame_00003.png")


def test_a_clip_is_repeated_from_its_file(made: Outcome, demo_bundle: Path, folder: Path) -> None:
    outcome = run(
        "generate", demo_bundle, "--job", folder / "a.mp4",
        "-o", folder / "b.m4a", "--save-latents", folder / "b.safetensors",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert_same_latents(folder / "a.safetensors", folder / "b.safetensors")
    assert "note" not in outcome.err
    assert record_in(folder / "b.m4a") == record_in(folder / "a.mp4")
    sound, rate = read_audio(folder / "b.m4a")
    whole, whole_rate = read_audio(folder / "a.wav")
    assert rate == whole_rate
    seconds = whole.shape[1] / rate
    assert f"b.m4a: {seconds:.2f} s of sound at {rate} Hz, seed 5" in outcome.out
    assert 0 <= sound.shape[1] - whole.shape[1] < 1024 + 1024  # AAC: whole blocks, priming


def test_a_dumped_job_repeats_with_changes(made: Outcome, demo_bundle: Path, folder: Path) -> None:
    job = folder / "dump.json"
    dumped = run(
        "generate", demo_bundle, "--job", folder / "a.safetensors", "--seed", 6, "-o", "x.mp4",
        "--dump-job", job,
    )  # fmt: skip
    assert (dumped.code, dumped.out, dumped.err) == (0, "", "")
    data = json.loads(job.read_text())
    assert data["seed"] == [6]
    assert data["record"]["request"]["config"]["seed"] == 5
    assert Path(data["output"]).is_absolute()


def test_embeddings_stand_in_for_the_text_encoder(
    made: Outcome, demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptEncoder, "__call__", pytest.fail)
    common = ("generate", demo_bundle, "--job", folder / "a.mp4", "--threads", 1, "--quiet")
    text = ("--embeddings", folder / "text.safetensors")
    target = folder / "e.safetensors"
    outcome = run(*common, *text, "--save-latents", target)
    assert outcome.code == 0, outcome.err
    assert_same_latents(folder / "a.safetensors", target)
    refused = run(*common, *text, "--prompt", "a hill", "--save-latents", target)
    expect_user_error(refused, "made from prompt 'a lake ☂', not from the one asked for")
    refused = run(*common, *text, "--save-embeddings", target, "--save-latents", target)
    expect_user_error(refused, "--embeddings and --save-embeddings exclude each other")
    refused = run(*common, "--embeddings", folder / "a.safetensors", "--save-latents", target)
    expect_user_error(refused, "it holds no video_context", "it holds no audio_context")


def test_a_bundle_without_a_text_encoder(made: Outcome, demo_bundle: Path, folder: Path) -> None:
    def remove(manifest: dict[str, Any]) -> None:
        for name in [n for n in manifest["components"] if n.startswith("text_")]:
            del manifest["components"][name]

    bundle = edited_bundle(demo_bundle, folder / "no_text.bundle", remove)
    target = folder / "n.safetensors"
    common = ("generate", bundle, *GUIDED, "--max-batch-size", 2, "--save-latents", target)
    image = ("--image", f"{folder / 'photo.png'}@0:0.7:0")
    text = ("--embeddings", folder / "text.safetensors")
    expect_user_error(run(*common, "--quiet"), "the one-stage pipeline needs text_")
    outcome = run(*common, *image, *text)
    assert outcome.code == 0, outcome.err
    assert_same_latents(folder / "a.safetensors", target)


def test_several_clips_share_one_text_encoding(
    demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = PromptEncoder.__call__

    def counted(self: PromptEncoder, prompts: Any, *more: Any) -> Any:
        encoded.append(list(prompts))
        return encode(self, prompts, *more)

    monkeypatch.setattr(PromptEncoder, "__call__", counted)
    common = ("generate", demo_bundle, "--prompt", "a", *SMALL, "--quiet", "--json")
    outcome = run(
        *common, "--seed", 7, "--num-videos", 2, "-o", folder / "many.mp4",
        "--save-latents", folder / "many.safetensors",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert encoded == [["a"]]
    assert [(r["seed"], Path(r["output"]).name) for r in outcome.json] == [
        (7, "many-0001.mp4"), (8, "many-0002.mp4"),
    ]  # fmt: skip
    alone = folder / "alone.safetensors"
    with ltx2rt.DistilledPipeline(
        ltx2rt.open_bundle(demo_bundle), ltx2rt.RuntimeConfig(threads=1)
    ) as pipe:
        small = {"prompt": "a", "height": 64, "width": 64, "num_frames": 9}
        for clip in pipe.generate_many([8], **small):
            clip.save_latents(alone)
    assert_same_latents(folder / "many-0002.safetensors", alone)


def test_finished_clips_are_not_made_again(demo_bundle: Path, tmp_path: Path) -> None:
    common = (
        "generate", demo_bundle, *RESUMABLE, "--num-videos", 2, "-o", tmp_path / "x.mp4",
        "--save-latents", tmp_path / "x.safetensors", "--resume", "--quiet",
    )  # fmt: skip
    assert run(*common).code == 0
    names = {f"x-000{n}.{kind}" for n in (1, 2) for kind in ("mp4", "safetensors")}
    assert {p.name for p in tmp_path.iterdir()} == names
    first, second = tmp_path / "x-0001.mp4", tmp_path / "x-0002.mp4"
    made = first.stat().st_mtime_ns
    second.unlink()
    again = run(*common)
    assert again.code == 0, again.err
    said = again.out.splitlines()
    assert said[0] == f"{first}: made before by this same request, seed 10"
    assert said[1].startswith(f"{second}: 9 frames of 64x64")
    assert first.stat().st_mtime_ns == made
    assert {p.name for p in tmp_path.iterdir()} == names
    again = run(*common, "--json")
    assert again.json == [
        {"output": str(path), "seed": seed, "skipped": True}
        for path, seed in ((first, 10), (second, 11))
    ]


def test_number_of_clips_is_checked(demo_bundle: Path, folder: Path) -> None:
    common = ("generate", demo_bundle, "--prompt", "a", *SMALL, "-o")
    for flags, said in (
        (("x.mp4", "--num-videos", 0), "--num-videos=0 is not in [1, 10000]"),
        (("x.mp4", "--num-videos", 3, "--seed", "1,2"), "--num-videos 3 does not fit 2 seeds"),
        (("-", "--seed", "1,2"), "-o - takes one clip"),
        (("x.mkv", "--stream"), "is .mp4 or .mov"),
        (("x.wav", "--stream"), "--stream is for video"),
        (("-", "--resume"), "--resume needs --work-dir DIR"),
    ):
        expect_user_error(run(*common, *flags), said)


def test_batch_goes_on_after_a_failure_and_resumes(demo_bundle: Path, folder: Path) -> None:
    size = {"height": 64, "width": 64, "num_frames": 9}
    jobs = folder / "jobs.jsonl"
    lines = [
        {"prompt": "a", "seed": 7, "output": "one.mp4", "save_latents": "one.safetensors", **size},
        {"prompt": "a", "image": "absent.png", **size},
        {"prompt": "a", "seed": "1,2", "output": "three.mp4", **size},
    ]
    jobs.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    target = folder / "batch"
    command = ("batch", demo_bundle, jobs, "-o", target, "--threads", 1, "--quiet")
    outcome = run(*command)
    assert outcome.code == EXIT_FAILED_JOBS
    results = [json.loads(line) for line in outcome.out.splitlines()]
    assert [r["job"] for r in results] == [1, 3, 5, 5]
    assert f"{folder / 'absent.png'}" in results[1]["error"]
    assert {p.name for p in target.iterdir()} == {
        "one.mp4", "one.safetensors", "three-0001.mp4", "three-0002.mp4",
    }  # fmt: skip
    (target / "three-0002.mp4").unlink()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "absent.png")
    again = run(*command, "--resume")
    assert again.code == 0, again.err
    done = [json.loads(line).get("skipped", False) for line in again.out.splitlines()]
    assert done == [True, False, True, False]


RESUMABLE = ("--prompt", "a lake", *SMALL)


@pytest.fixture(scope="module")
def killed(demo_bundle: Path, folder: Path) -> Path:
    """The kept stages of a run that SIGKILL ended in its second stage."""
    script = (
        "import os, signal, sys\n"
        "from ltx2rt.cli import generate\n"
        "from ltx2rt.cli.__main__ import main\n"
        "def printer(**_):\n"
        "    def report(p):\n"
        "        if (p.stage, p.step) == ('stage_2', 1):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return report\n"
        "generate.ProgressPrinter = printer\n"
        "main(sys.argv[1:])\n"
    )
    work = folder / "work"
    arguments = ["generate", demo_bundle, *RESUMABLE, "-o", folder / "k.mp4", "--work-dir", work]
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return work


def test_a_killed_run_goes_on_bit_equal(
    killed: Path, demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {p.name for p in killed.iterdir()} == {
        f"{name}.stage.safetensors" for name in ("context", "stage_1", "upsample_1")
    }  # fmt: skip
    assert not (folder / "k.mp4").exists()
    whole = run(
        "generate", demo_bundle, *RESUMABLE, "--quiet", "--save-latents", folder / "w.safetensors"
    )
    assert whole.code == 0, whole.err
    other = run(
        "generate", demo_bundle, *RESUMABLE, "--seed", 4, "--frame-rate", 30,
        "-o", folder / "k.mp4", "--work-dir", killed, "--resume",
    )  # fmt: skip
    expect_user_error(other, "config.seed was 10, now it is 4", "config.frame_rate was 24.0")
    assert "repeat the command" not in other.err
    monkeypatch.setattr(PromptEncoder, "__call__", pytest.fail)
    monkeypatch.setattr(LatentUpsampler, "__call__", pytest.fail)
    resumed = run(
        "generate", demo_bundle, *RESUMABLE, "-o", folder / "k.mp4", "--work-dir", killed,
        "--resume", "--save-latents", folder / "k.safetensors",
    )  # fmt: skip
    assert resumed.code == 0, resumed.err
    assert "stage_1: 1/1" in resumed.err
    assert_same_latents(folder / "w.safetensors", folder / "k.safetensors")
    (folder / "k.mp4").unlink()
    stage = killed / "stage_1.stage.safetensors"
    stage.write_bytes(stage.read_bytes()[:-100])
    damaged = run(
        "generate", demo_bundle, *RESUMABLE, "-o", folder / "k.mp4", "--work-dir", killed,
        "--resume",
    )  # fmt: skip
    expect_user_error(
        damaged, "stage_1.stage.safetensors is damaged", "remove it", "leave --resume"
    )
    assert "download" not in damaged.err
    stage.unlink()
    again = run(
        "generate", demo_bundle, *RESUMABLE, "-o", folder / "k.mp4", "--work-dir", killed,
        "--resume", "--save-latents", folder / "again.safetensors",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert_same_latents(folder / "w.safetensors", folder / "again.safetensors")


def test_interrupted_runs_say_how_to_go_on(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printer(**_: bool) -> Any:
        def report(progress: Progress) -> None:
            if progress.stage == "upsample":
                raise KeyboardInterrupt

        return report

    command = ("generate", demo_bundle, *RESUMABLE, "-o", tmp_path / "x.mp4", "--resume")
    with monkeypatch.context() as patch:
        patch.setattr("ltx2rt.cli.generate.ProgressPrinter", printer)
        stopped = run(*command)
    work = tmp_path / "x.mp4.work"
    assert stopped.code == 130
    assert f"finished stages (context, stage_1) are kept in {work}: repeat" in stopped.err
    assert run(*command).code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"x.mp4"}


def test_an_unfinished_stream_is_not_made(demo_bundle: Path, tmp_path: Path) -> None:
    """Its record is in the first bytes; what a killed run left of it is not the clip."""
    target = tmp_path / "s.mp4"
    command = ("generate", demo_bundle, *RESUMABLE, "-o", target, "--stream", "--resume", "--quiet")
    assert run(*command).code == 0
    whole = target.read_bytes()
    assert "made before" in run(*command).out
    for end in (len(whole) - 1, whole.rindex(b"mfra") - 4, whole.rindex(b"moof")):
        target.write_bytes(whole[:end])
        again = run(*command, "--json").json
        assert again["changed"][0] in ("it was not finished", "it does not say how it was made")
        assert target.read_bytes() == whole


def decodable(path: Path) -> int:
    """Frames that a player gets from the file as it is now."""
    try:
        with av.open(io.BytesIO(path.read_bytes())) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, OSError):
        return 0


def test_a_stream_plays_while_later_tiles_decode(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last tile the player has the frames of earlier ones."""
    target, seen = tmp_path / "s.mp4", []

    def printer(**_: bool) -> Any:
        def report(progress: Progress) -> None:
            if progress.stage == "decode video" and progress.step == progress.total > 1:
                deadline = time.monotonic() + 20
                while not decodable(target) and time.monotonic() < deadline:
                    time.sleep(0.05)
                seen.append(decodable(target))

        return report

    monkeypatch.setattr("ltx2rt.cli.generate.ProgressPrinter", printer)
    size = instead(*SMALL, "--num-frames", 57)
    outcome = run(
        "generate", demo_bundle, "--prompt", "a", *size, "--frame-rate", 8,
        "--tiling", "0x32:0x16", "--stream", "-o", target,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(seen) == 1
    assert 8 <= seen[0] < 57
    assert decodable(target) == 57


def test_a_clip_on_standard_output(demo_bundle: Path, tmp_path: Path) -> None:
    arguments = ["generate", demo_bundle, "--prompt", "a", *SMALL, "-o", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "ltx2rt.cli", *map(str, arguments)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "x.mp4").write_bytes(done.stdout)
    info = probe_video(tmp_path / "x.mp4")
    assert (info.width, info.num_frames, info.has_audio) == (64, 9, True)
    assert b"-: 9 frames of 64x64" in done.stderr
    assert "ltx2rt_record" in read_tags(tmp_path / "x.mp4")
