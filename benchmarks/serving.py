"""What a door costs: the same clip by a direct call, through `ltx2rt serve`, and through Triton.

`python -m benchmarks.serving BUNDLE [--clips N] [--triton]` prints a row a door, then one JSON
document. Seconds are the client's, from its request to its last byte; the model stays loaded.
`--triton` needs what `pytest -m server` sets up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ltx2rt
from ltx2rt.service.clients import Client, HttpClient, TritonClient
from ltx2rt.service.triton.repository import RepositoryConfig, write_repository
from tests.parity.http_server import serving
from tests.parity.triton_server import triton_server

SIZE = {"prompt": "a lake at dawn", "height": 128, "width": 128, "num_frames": 25}
Times = list[tuple[float, float]]


def direct(bundle: Path) -> Callable[[int], tuple[float, float]]:
    """Seconds to the first bytes and to the last, of a call in this process."""
    runtime = ltx2rt.RuntimeConfig(threads=1, residency="resident")
    pipe = ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle), runtime)

    class Stream(io.BytesIO):
        first = 0.0

        def write(self, data: Any) -> int:
            self.first = self.first or time.perf_counter()
            return super().write(data)

    def once(seed: int) -> tuple[float, float]:
        began, stream = time.perf_counter(), Stream()
        pipe(**SIZE, seed=seed).save(stream)
        return stream.first - began, time.perf_counter() - began

    return once


def through(client: Client) -> Callable[[int], tuple[float, float]]:
    """The same of a client."""

    def once(seed: int) -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        for piece in client.generate({"config": {**SIZE, "seed": seed}}, lambda _: None):
            if piece and not first:
                first = time.perf_counter() - began
        return first, time.perf_counter() - began

    return once


def row(name: str, times: Times, beside: Times) -> dict[str, Any]:
    """Medians and the like of one door.

    Args:
        times: seconds to the first bytes and to the last, a clip each.
        beside: those of direct calls for the same clips.
    """
    firsts, wholes = zip(*times, strict=True)
    ordered = sorted(wholes)
    more = [mine[1] - direct[1] for mine, direct in zip(times, beside, strict=True)]
    return {
        "door": name,
        "clips": len(ordered),
        "p50_s": statistics.median(ordered),
        "p95_s": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))],
        "first_fragment_p50_s": statistics.median(firsts),
        "more_than_direct_p50_s": statistics.median(more),
        "clips_per_minute": 60 * len(ordered) / sum(ordered),
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
        doors["`ltx2rt serve`"] = through(HttpClient(server.url))
        if options.triton:
            config = RepositoryConfig(bundle=options.bundle, threads=1)
            write_repository(folder / "repo", config)
            triton = stack.enter_context(triton_server(folder / "repo/models", folder))
            doors["Triton, gRPC stream"] = through(TritonClient(f"127.0.0.1:{triton.grpc}"))
        times: dict[str, Times] = {name: [] for name in doors}
        for seed in range(options.clips + 1):
            for name, once in doors.items():  # by turns: what else the machine does hits all alike
                times[name].append(once(seed))
    rows = [row(name, all_[1:], times["direct call"][1:]) for name, all_ in times.items()]
    for shown in rows:
        numbers = [f"{v:.3f}" for v in list(shown.values())[2:6]]
        print(f"| {shown['door']} | {' | '.join(numbers)} | {shown['clips_per_minute']:.1f} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
