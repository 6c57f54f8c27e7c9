"""`ltx2rt batch --runner ray` on a real Ray of this machine: `pytest -m server tests/parity`."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.cli.batch_ray import on_ray
from ltx2rt.errors import OptionError
from tests.parity.command_line import ltx2rt as run
from tests.parity.http_server import waited
from tests.parity.test_soak import tree
from tests.unit.test_batch_devices import make

pytestmark = pytest.mark.server

TINY = {
    "height": 64, "width": 64, "num_frames": 9,
    "sigmas": [1.0, 0.5, 0.0], "stage_2_sigmas": [0.5, 0.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ltx2rt[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token file in the user's home
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=100_000_000,
            _node_ip_address="127.0.0.1", log_to_driver=False,
        )  # fmt: skip
        yield ray
        ray.shutdown()


def test_every_job_is_made_once(cluster: Any, tmp_path: Path) -> None:
    """As with processes of this machine: a death costs a try, a fault of ours only its job."""
    names = ["a", "once", "b", "dies", "c", "fault", "d", "e"]
    jobs = [tmp_path / name for name in names]
    for job in jobs:
        job.touch()
    found = {job.name: result for job, result in on_ray(jobs, make, uses_gpu=False)}
    assert found["dies"] == {"error": "its process ended 2 times while it was made."}
    assert found["fault"] == {"error": "RuntimeError: a fault of ours"}
    made = [found[name] for name in ("a", "once", "b", "c", "d", "e")]
    assert {r["device"] for r in made} == {None}
    assert os.getpid() not in {r["process"] for r in made}
    tries = {job.name: int(job.read_text()) for job in jobs}
    assert tries == {**dict.fromkeys(names, 1), "once": 2, "dies": 2}
    with pytest.raises(OptionError, match="needs a GPU a worker"):
        next(on_ray(jobs, make, uses_gpu=True))


def test_a_killed_worker_costs_nothing(cluster: Any, demo_bundle: Path, tmp_path: Path) -> None:
    """Killed while it makes a clip: the folder holds what an undisturbed run makes."""
    jobs = tmp_path / "jobs.jsonl"
    lines = [{**TINY, "prompt": f"lake {i}", "output": f"{i}.mp4"} for i in range(6)]
    lines[3]["num_frames"] = 121  # long enough to be in the midst of
    jobs.write_text("\n".join(map(json.dumps, lines)))
    common = (jobs, "--threads", 1, "--quiet", "--resume")
    ray = ("--runner", "ray", "--workers", 2)
    plain = run("batch", demo_bundle, *common, "-o", tmp_path / "plain")
    assert plain.code == 0, plain
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(killed,))
    killer.start()
    made = run("batch", demo_bundle, *common, *ray, "-o", tmp_path / "ray")
    killer.join()
    assert made.code == 0, made
    assert killed
    results = [json.loads(line) for line in made.out.splitlines()]
    assert sorted(r["job"] for r in results) == [1, 2, 3, 4, 5, 6]
    assert content(tmp_path / "ray") == content(tmp_path / "plain")
    (tmp_path / "ray/2.mp4").unlink()
    again = run("batch", demo_bundle, *common, *ray, "-o", tmp_path / "ray")
    assert again.code == 0, again
    assert content(tmp_path / "ray") == content(tmp_path / "plain")
    assert sum("skipped" in json.loads(line) for line in again.out.splitlines()) == 5


def kill_one(killed: list[int]) -> None:
    """End a process that is making a clip."""

    def busy() -> int | None:
        for process in tree(os.getpid()):
            if title(process).startswith("ray::RayWorker.make"):
                return process
        return None

    killed.append(waited(busy, "a busy worker"))
    os.kill(killed[0], signal.SIGKILL)


def title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}
