"""Batches: a bad line fails alone, and a changed one is made again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.cli.batch import EXIT_FAILED_JOBS
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.results.record import record_in
from tests.parity.command_line import Outcome, expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run


def batch_results(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_a_bad_line_fails_alone(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = '"height": 64, "width": 64, "num_frames": 9'
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(
        '{"prompt": "a", "promt": 1}\n{\n[]\n{"prompt": "a", "output": "../x.mp4"}\n'
        f'{{"prompt": "a", "output": "/x.mp4"}}\n{{"prompt": "a", "output": "y.mp4", {size}}}\n'
        f'{{"prompt": "b", "output": "z/../y.mp4", {size}}}\n'
        '{"prompt": "a", "resume": true, "stream": true}\n{"prompt": "\\ud800"}\n'
        f'{{"prompt": "a", "output": "{"n" * 300}.mp4"}}\n'
        f'{{"prompt": "too much", "output": "big.mp4", {size}}}\n'
    )
    call = DistilledPipeline.__call__

    def too_much(self: DistilledPipeline, config: Any, *rest: Any, **options: Any) -> Any:
        if config.prompt == "too much":
            raise MemoryError("40 GiB")
        return call(self, config, *rest, **options)

    monkeypatch.setattr(DistilledPipeline, "__call__", too_much)
    outcome = run("batch", demo_bundle, jobs, "-o", tmp_path / "out", "--threads", 1, "--quiet")
    assert outcome.code == EXIT_FAILED_JOBS
    said = [
        "'promt' is unknown", "it is not JSON", "not an object", "is not inside",
        "output /x.mp4", "y.mp4' is the output of line 6", "resume, stream cannot be used",
        "not valid UTF-8", "File name too long", "more memory than there is. 40 GiB",
    ]  # fmt: skip
    results = batch_results(outcome)
    failed = {r["job"]: r["error"] for r in results if "error" in r}
    assert list(failed) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    for text, error in zip(said, failed.values(), strict=True):
        assert text in error
    assert [Path(r["output"]).name for r in results if "error" not in r] == ["y.mp4"]
    assert outcome.err == "ltx2rt: 10 of 11 jobs failed.\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"y.mp4"}


def test_batch_refuses_what_is_no_file_of_jobs(demo_bundle: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    os.mkfifo(tmp_path / "pipe")
    jobs.write_text('{"prompt": "a"}')
    with unchanged(tmp_path):
        expect_user_error(run("batch", demo_bundle, jobs, "-o", jobs), "name a directory")
        expect_user_error(run("batch", jobs, jobs, "-o", tmp_path / "out"), "is not a bundle")
        for path, said in ((tmp_path / "pipe", "a pipe or device"), (tmp_path, "Is a directory")):
            expect_user_error(run("batch", demo_bundle, path, "-o", tmp_path / "out"), said)
    jobs.write_text("\n\n")
    expect_user_error(run("batch", demo_bundle, jobs, "-o", tmp_path / "out"), "holds no jobs")


def test_a_resumed_batch_makes_changed_lines_again(demo_bundle: Path, tmp_path: Path) -> None:
    size = {"height": 64, "width": 64, "num_frames": 9}
    jobs, target = tmp_path / "jobs.jsonl", tmp_path / "out"

    def batch(*lines: dict[str, Any]) -> list[dict[str, Any]]:
        jobs.write_text("".join(json.dumps({**line, **size}) + "\n" for line in lines))
        command = ("batch", demo_bundle, jobs, "-o", target, "--threads", 1, "--quiet", "--resume")
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
        return batch_results(outcome)

    unnamed, _ = batch({"prompt": "a"}, {"prompt": "b", "output": "b.mp4", "frames": "b"})
    again = batch(
        {"prompt": "c"}, {"prompt": "a"}, {"prompt": "b", "output": "b.mp4", "frames": "b"}
    )
    assert [r.get("skipped", False) for r in again] == [False, True, True]
    assert again[1]["output"] == unnamed["output"]  # another line above changes no name
    shutil.rmtree(target / "b")
    part = subprocess.run([sys.executable, "-c", ABANDONED, str(target / "b.mp4")], check=False)
    assert part.returncode == -signal.SIGKILL
    (changed,) = batch({"prompt": "b", "output": "b.mp4", "seed": 3})
    assert changed["changed"] == ["config.seed was 10, now it is 3"]
    assert record_in(target / "b.mp4").request.config.seed == 3
    assert len(list(target.iterdir())) == 3


#: begins to write a file, then is killed
ABANDONED = (
    "import os, signal, sys\nfrom pathlib import Path\nfrom ltx2rt.partial import Partial\n"
    "part = Partial(Path(sys.argv[1]))\nos.kill(os.getpid(), signal.SIGKILL)\n"
)
