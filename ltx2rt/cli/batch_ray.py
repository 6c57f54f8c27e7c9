"""`ltx2rt batch --runner ray`: an actor a GPU of a Ray cluster, each makes the next job that nobody
has.

An actor that ends in the midst of a job, or whose node is lost, costs that job one try; a new actor
takes its place as soon as the cluster has room for it. Paths mean the same on every node.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ltx2rt.cli.batch_devices import TRIES, Result
from ltx2rt.env import keep_ray_quiet
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.install import install_hint

Make = Callable[[Any, int | None], Result]


class RayWorker:
    """An actor: makes one job after another."""

    def make(self, make: Make, job: Any, device: int | None) -> Result:
        """One job; what it loads stays in this process."""
        return make(job, device)


def on_ray(
    jobs: Sequence[Any], make: Make, *, uses_gpu: bool, workers: int | None = None
) -> Iterator[tuple[Any, Result]]:
    """Jobs with their results, as they are made.

    Args:
        jobs: what `make` takes; both are sent to other processes.
        make: makes one job on a device; it may keep what it loads in its module.
        uses_gpu: an actor has a GPU of its own, which is number 0 to it.
        workers: actors at most; None: one for every GPU of the cluster, or for every processor.

    Raises:
        UnsupportedError: Ray is not installed.
        OptionError: there is no cluster at `RAY_ADDRESS`, or it has no GPU.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            ray.init()
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise OptionError(f"no Ray cluster answers: {error}") from error
    try:
        unit = "GPU" if uses_gpu else "CPU"
        room = int(ray.cluster_resources().get(unit, 0))
        if not room:
            raise OptionError(
                f"this bundle needs a {unit} a worker, and the Ray cluster has none: start Ray on "
                "machines that have one, and name the cluster with RAY_ADDRESS."
            )
        yield from _Pool(ray, make, uses_gpu).results(jobs, min(workers or room, len(jobs)))
    finally:
        if is_ours:
            ray.shutdown()


class _Pool:
    """Actors, and what they are at."""

    def __init__(self, ray: Any, make: Make, uses_gpu: bool) -> None:
        self._ray, self._make = ray, make
        self._device = 0 if uses_gpu else None
        self._kind = (
            ray.remote(num_gpus=1)(RayWorker) if uses_gpu else ray.remote(num_cpus=1)(RayWorker)
        )

    def results(self, jobs: Sequence[Any], count: int) -> Iterator[tuple[Any, Result]]:
        waiting = deque((job, 1) for job in jobs)
        #: what an actor answers with -> the actor, its job, and which try it is
        busy: dict[Any, tuple[Any, Any, int]] = {}

        def begin(actor: Any) -> None:
            job, tries = waiting.popleft()
            busy[actor.make.remote(self._make, job, self._device)] = actor, job, tries

        try:
            for _ in range(count):
                begin(self._kind.remote())
            while busy:
                [done], _ = self._ray.wait([*busy], num_returns=1)
                actor, job, tries = busy.pop(done)
                try:
                    result: Result = self._ray.get(done)
                except self._ray.exceptions.RayTaskError as error:  # a fault of ours
                    result = {"error": f"{type(error.cause).__name__}: {error.cause}"}
                    actor = self._replaced(actor)
                except self._ray.exceptions.RayError:  # its process, or its node, is gone
                    actor = self._replaced(actor)
                    if tries < TRIES:
                        waiting.appendleft((job, tries + 1))
                        begin(actor)
                        continue
                    result = {"error": f"its process ended {tries} times while it was made."}
                if waiting:
                    begin(actor)
                yield job, result
        finally:
            for actor, _, _ in busy.values():
                self._ray.kill(actor)

    def _replaced(self, actor: Any) -> Any:
        """What it has loaded may be what was wrong."""
        self._ray.kill(actor)
        return self._kind.remote()


def _ray() -> Any:
    keep_ray_quiet()
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"--runner ray needs the package {error.name}, which is part of the ray extra: "
            f"{install_hint('ray')}"
        ) from error
