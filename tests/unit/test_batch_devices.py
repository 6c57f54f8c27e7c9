"""Jobs on several processes: all are made once, and a process that dies costs no other job."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.cli.batch_devices import Shard, on_devices, parse_devices, parse_shard
from ltx2rt.errors import DeviceLostError, Field, Problem


def make(job: Path, device: int | None) -> dict[str, Any]:
    """A job is a file; its name says how it goes."""
    tries = int(job.read_text() or "0") + 1
    job.write_text(str(tries))
    if job.name.startswith("dies") or (job.name.startswith("once") and tries == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.name.startswith("fault"):
        raise RuntimeError("a fault of ours")
    if job.name.startswith("lost") and tries == 1:
        raise DeviceLostError(Problem("see ", Field("work_dir")))
    return {"device": device, "process": os.getpid()}


def test_every_job_is_made_once(tmp_path: Path) -> None:
    names = ["a", "once", "b", "dies", "c", "fault", "d", "lost"]
    jobs = [tmp_path / name for name in names]
    for job in jobs:
        job.touch()
    found = {job.name: result for job, result in on_devices(jobs, (None, 1), make)}
    assert {*found} == {*names}
    assert found["dies"] == {"error": "its process ended 2 times while it was made."}
    assert found["fault"] == {"error": "RuntimeError: a fault of ours"}
    made = [found[name] for name in ("a", "once", "b", "c", "d", "lost")]
    assert {r["device"] for r in made} <= {None, 1}
    assert os.getpid() not in {r["process"] for r in made}
    tries = {job.name: int(job.read_text()) for job in jobs}
    assert tries == {**dict.fromkeys(names, 1), "once": 2, "dies": 2, "lost": 2}


def test_shards_and_devices_are_read() -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    assert parse_devices("0,1") == (0, 1)
    assert parse_devices("cpu,cpu") == (None, None)
    for read, texts in (
        (parse_shard, ("8/8", "1", "-1/2", "a/b", "0/0", "1/2/3")),
        (parse_devices, ("", "0,0", "gpu", "0,-1", "1,")),
    ):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError):
                read(text)
