"""What a door costs: the same clip by a direct call, through `ltx2rt serve`, and through Triton.

`python -m benchmarks.serving BUNDLE [--clips N] [--triton]` prints a row a door, then one JSON
document. Seconds are the client's, from its request to its last byte; the model stays loaded.
`--triton` needs what `pytest -m server` sets up.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ltx2rt
from ltx2rt.service.clients import Client, HttpClient, TritonClient
from ltx2rt.service.triton.repository import RepositoryConfig, write_repository
from tests.parity.http_server import serving
from tests.parity.triton_server import triton_server

SIZE = {"prompt": "a lake at dawn", "height": 256, "width": 256, "num_frames": 49}


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


def row(name: str, times: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """Medians and the like of one door."""
    firsts, wholes = zip(*times, strict=True)
    ordered = sorted(wholes)
    return {
        "door": name,
        "clips": len(ordered),
        "p50_s": statistics.median(ordered),
        "p95_s": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))],
        "first_fragment_p50_s": statistics.median(firsts),
        "clips_per_minute": 60 * len(ordered) / sum(ordered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--triton", action="store_true", help="also through a real Triton server")
    options = parser.parse_args()
    rows = []

    def measure(name: str, once: Callable[[int], tuple[float, float]]) -> None:
        once(0)
        rows.append(row(name, [once(seed) for seed in range(1, options.clips + 1)]))
        shown = rows[-1]
        print(
            f"| {name} | {shown['p50_s']:.3f} | {shown['p95_s']:.3f} | "
            f"{shown['first_fragment_p50_s']:.3f} | {shown['clips_per_minute']:.1f} |"
        )

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        measure("direct call", direct(options.bundle))
        with serving(options.bundle, folder) as server:
            measure("`ltx2rt serve`", through(HttpClient(server.url)))
        if options.triton:
            config = RepositoryConfig(bundle=options.bundle, threads=1)
            write_repository(folder / "repo", config)
            with triton_server(folder / "repo/models", folder) as triton:
                client = TritonClient(f"127.0.0.1:{triton.grpc}")
                measure("Triton, gRPC stream", through(client))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
