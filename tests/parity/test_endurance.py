"""Killed at any moment and run on and on: nothing lost, nothing left behind, nothing grows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ltx2rt
from ltx2rt.cli import batch
from tests.parity.command_line import SMALL, build_flags
from tests.parity.command_line import ltx2rt as run

pytestmark = pytest.mark.fuzz

KILLS = int(os.environ.get("LTX2RT_KILLS", "50"))
RUNS = 200
REQUEST = {"prompt": "a", "height": 64, "width": 64, "num_frames": 9}


def started(*arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-m", "ltx2rt.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def killed_and_repeated(command: tuple[object, ...], folder: Path, seconds: float) -> float:
    """Kill the command after so long, then let it run to its end; seconds that this took."""
    process = started(*command)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    assert started(*command).wait() == 0, content(folder).keys()
    return time.monotonic() - start


def kill_often(
    command: tuple[object, ...], folder: Path, whole: dict[str, bytes], seconds: float, kills: int
) -> None:
    """Kill it at random moments; every repetition leaves what an undisturbed run leaves."""
    draw = random.Random(seconds)
    for _ in range(kills):
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        killed_and_repeated(command, folder, draw.uniform(0.2, seconds))
        assert content(folder) == whole


def undisturbed(command: tuple[object, ...], folder: Path) -> tuple[dict[str, bytes], float]:
    start = time.monotonic()
    assert started(*command).wait() == 0
    return content(folder), time.monotonic() - start


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_generate_survives_kills(
    demo_bundle: Path, tmp_path: Path, stream: tuple[str, ...]
) -> None:
    command = (
        "generate", demo_bundle, "--prompt", "a", *SMALL, "--resume", *stream,
        "-o", tmp_path / "x.mp4", "--save-latents", tmp_path / "x.safetensors",
    )  # fmt: skip
    whole, seconds = undisturbed(command, tmp_path)
    assert sorted(whole) == ["x.mp4", "x.safetensors"]
    kill_often(command, tmp_path, whole, seconds, KILLS // 2)


def test_batch_survives_kills(demo_bundle: Path, tmp_path: Path) -> None:
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    jobs.write_text("".join(json.dumps({**REQUEST, "seed": s}) + "\n" for s in range(3)))
    command = ("batch", demo_bundle, jobs, "-o", out, "--threads", 1, "--resume")
    whole, seconds = undisturbed(command, out)
    assert len(whole) == 3
    kill_often(command, out, whole, seconds, KILLS)


def test_build_survives_kills(demo_model: dict[str, Path], tmp_path: Path) -> None:
    command = ("build", *build_flags(demo_model), "-o", tmp_path / "b", "--force")
    whole, seconds = undisturbed(command, tmp_path)
    kill_often(command, tmp_path, whole, seconds, KILLS)
    for _ in range(3):  # while the old one is replaced
        killed_and_repeated(command, tmp_path, seconds)
        assert content(tmp_path) == whole


def state() -> tuple[int, int, int]:
    """Resident bytes, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    return pages * os.sysconf("SC_PAGE_SIZE"), files, threading.active_count()


def assert_flat(before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
    print(f"\n{before} -> {after}", file=sys.__stderr__)
    assert after[0] - before[0] < 32 << 20
    assert after[1:] == before[1:]


def test_many_generations_in_one_process(demo_bundle: Path, tmp_path: Path) -> None:
    path, found, states = tmp_path / "x.mp4", set(), []
    runtime = ltx2rt.RuntimeConfig(threads=1, residency="resident")
    with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(demo_bundle), runtime) as pipe:
        for number in range(RUNS):
            pipe(**REQUEST).save(path)
            found.add(path.read_bytes())
            if number >= 10:
                states.append(state())
    assert len(found) == 1
    assert_flat(states[0], states[-1])


def test_many_jobs_in_one_process(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[Any] = []
    say = batch._say
    monkeypatch.setattr(batch, "_say", lambda *said: (say(*said), states.append(state())))
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(json.dumps({**REQUEST, "seed": s}) + "\n" for s in range(RUNS)))
    outcome = run("batch", demo_bundle, jobs, "-o", tmp_path / "out", "--threads", 1, "--quiet")
    assert outcome.code == 0, outcome.err
    assert_flat(states[10], states[-1])
