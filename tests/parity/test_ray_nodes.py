"""Two hundred jobs on a Ray cluster of two nodes, of which one is lost: `pytest -m server`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ltx2rt.cli.batch_ray import on_ray

pytestmark = pytest.mark.server

JOBS, UNDISTURBED = 200, 20


class Job(NamedTuple):
    """A file to write; from the twentieth on, jobs of the `lost` node never end."""

    path: Path
    number: int
    lost: str


def make(job: Job, device: int | None) -> dict[str, Any]:
    import ray

    node = ray.get_runtime_context().get_node_id()
    if job.number > UNDISTURBED and node == job.lost:
        (job.path.parent / "in the midst").touch()
        threading.Event().wait()
    job.path.write_text(f"clip {job.number}")
    return {"node": node}


@pytest.fixture
def nodes() -> Iterator[tuple[Any, Any]]:
    """A cluster of two nodes with a processor each, and the second of them."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'ltx2rt[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token file in the user's home
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        size = {"num_cpus": 1, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        second = cluster.add_node(**size)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, second
        ray.shutdown()
        cluster.shutdown()


def test_a_lost_node_costs_nothing(nodes: tuple[Any, Any], tmp_path: Path) -> None:
    cluster, second = nodes
    jobs = [Job(tmp_path / f"{i}.txt", i, second.node_id) for i in range(JOBS)]
    found: dict[int, dict[str, Any]] = {}
    is_lost = False
    for job, result in on_ray(jobs, make, uses_gpu=False):
        found[job.number] = result
        if not is_lost and (tmp_path / "in the midst").exists():
            cluster.remove_node(second, allow_graceful=False)
            is_lost = True
    assert is_lost
    assert [*sorted(found)] == [*range(JOBS)]
    assert not [result for result in found.values() if "error" in result]
    assert len({result["node"] for result in found.values()}) == 2
    (tmp_path / "in the midst").unlink()
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {f"{i}.txt": f"clip {i}" for i in range(JOBS)}
