"""What a door costs: the same clip by a direct call, through `ltx2rt serve`, and through Triton.

`python -m benchmarks.serving BUNDLE [--clips N] [--triton]` prints a row a door, then one JSON
document. Seconds are the client's, from its request to its last byte; the model stays loaded.
What a door adds is two numbers that a busy machine leaves alone: seconds beyond those that the
worker itself counts for the same clip, and CPU seconds of client, server and worker together.
`--triton` needs what `pytest -m server` sets up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ltx2rt
from ltx2rt.service.clients import Client, HttpClient, TritonClient
from ltx2rt.service.triton.repository import RepositoryConfig, write_repository
from tests.parity.http_server import serving
from tests.parity.triton_server import triton_server

SIZE = {"prompt": "a lake at dawn", "height": 128, "width": 128, "num_frames": 25}


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one clip.

    Attributes:
        first: from the request to the first bytes.
        whole: to the last.
        beyond: of `whole`, what the worker does not count as its own.
        cpu: of all processes that had to do with it.
    """

    first: float
    whole: float
    beyond: float
    cpu: float


Door = Callable[[int], Times]


def direct(bundle: Path) -> Door:
    """A call in this process."""
    runtime = ltx2rt.RuntimeConfig(threads=1, residency="resident")
    pipe = ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle), runtime)

    class Stream(io.BytesIO):
        first = 0.0

        def write(self, data: Any) -> int:
            self.first = self.first or time.perf_counter()
            return super().write(data)

    def once(seed: int) -> Times:
        busy, began, stream = time.process_time(), time.perf_counter(), Stream()
        pipe(**SIZE, seed=seed).save(stream)
        whole = time.perf_counter() - began
        return Times(stream.first - began, whole, 0.0, time.process_time() - busy)

    return once


def through(client: Client, server: int) -> Door:
    """The same of a client; `server` is the process that it asks."""

    def once(seed: int) -> Times:
        results: list[dict[str, Any]] = []

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "result":
                results.append(event.get("ltx2rt", event))

        busy, began, first = time.process_time() + cpu_seconds(server), time.perf_counter(), 0.0
        for piece in client.generate({"config": {**SIZE, "seed": seed}}, on_event):
            if piece and not first:
                first = time.perf_counter() - began
        whole = time.perf_counter() - began
        cpu = time.process_time() + cpu_seconds(server) - busy
        return Times(first, whole, whole - results[0]["timings_s"]["total"], cpu)

    return once


def cpu_seconds(process: int) -> float:
    """Of a process and its children."""
    folder = Path(f"/proc/{process}")
    ticks = sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
    children = [int(p) for f in folder.glob("task/*/children") for p in f.read_text().split()]
    return ticks / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children))


def row(name: str, times: list[Times]) -> dict[str, Any]:
    """Medians and the like of one door."""
    wholes = sorted(t.whole for t in times)
    return {
        "door": name,
        "clips": len(wholes),
        "p50_s": statistics.median(wholes),
        "p95_s": wholes[min(len(wholes) - 1, round(0.95 * len(wholes)))],
        "first_fragment_p50_s": statistics.median(t.first for t in times),
        "beyond_the_worker_p50_s": statistics.median(t.beyond for t in times),
        "cpu_s": statistics.median(t.cpu for t in times),
        "clips_per_minute": 60 * len(wholes) / sum(wholes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--triton", action="store_true", help="also through a real Triton server")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        doors = {"direct call": direct(options.bundle)}
        server = stack.enter_context(serving(options.bundle, folder))
        doors["`ltx2rt serve`"] = through(HttpClient(server.url), server.process.pid)
        if options.triton:
            config = RepositoryConfig(bundle=options.bundle, threads=1)
            write_repository(folder / "repo", config)
            triton = stack.enter_context(triton_server(folder / "repo/models", folder))
            client = TritonClient(f"127.0.0.1:{triton.grpc}")
            doors["Triton, gRPC stream"] = through(client, triton.process.pid)
        times: dict[str, list[Times]] = {name: [] for name in doors}
        for seed in range(options.clips + 1):
            for name, once in doors.items():  # by turns: what else the machine does hits all alike
                times[name].append(once(seed))
    rows = [row(name, all_[1:]) for name, all_ in times.items()]  # the first one loads
    for shown in rows:
        numbers = [f"{v:.3f}" for v in list(shown.values())[2:7]]
        print(f"| {shown['door']} | {' | '.join(numbers)} | {shown['clips_per_minute']:.1f} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
