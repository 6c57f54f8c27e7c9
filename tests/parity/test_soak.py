"""Three hundred tiny requests one after another (or `LTX2RT_SOAK` of them): memory, handles and
shared memory stay flat.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ltx2rt.service.clients import Client, HttpClient, TritonClient
from ltx2rt.service.triton.repository import RepositoryConfig, write_repository
from tests.parity.http_server import serving, waited
from tests.parity.triton_server import shared_memory, triton_server

pytestmark = pytest.mark.fuzz

REQUESTS = int(os.environ.get("LTX2RT_SOAK", "300"))
WARM = REQUESTS // 3
TINY = {
    "height": 64, "width": 64, "num_frames": 9, "sigmas": [1.0, 0.0], "stage_2_sigmas": [0.5, 0.0],
}  # fmt: skip
#: bytes that allocators may keep of what they were given: of 200 requests, 80 kB each would show
ROOM = 16_000_000


@dataclass(frozen=True)
class Usage:
    """Of a server, its workers included: private bytes, open handles, threads, shared bytes."""

    memory: int
    handles: int
    threads: int
    shared: int


def usage(process: int) -> Usage:
    found = [*tree(process)]
    status = [Path(f"/proc/{p}/status").read_text() for p in found]

    def total(name: str) -> int:
        return sum(int(text.partition(f"{name}:")[2].split()[0]) for text in status)

    handles = sum(len([*Path(f"/proc/{p}/fd").iterdir()]) for p in found)
    return Usage(total("RssAnon") * 1024, handles, total("Threads"), shared_memory())


def tree(process: int) -> Iterator[int]:
    """A process and its children, as far as they do not end meanwhile."""
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text().split():
                yield from tree(int(child))


@contextmanager
def http(bundle: Path, folder: Path) -> Iterator[tuple[Client, int]]:
    with serving(bundle, folder) as server:
        yield HttpClient(server.url), server.process.pid


@contextmanager
def triton(bundle: Path, folder: Path) -> Iterator[tuple[Client, int]]:
    write_repository(folder / "repo", RepositoryConfig(bundle=bundle, threads=1))
    with triton_server(folder / "repo/models", folder) as server:
        yield TritonClient(f"127.0.0.1:{server.grpc}"), server.process.pid


@pytest.mark.parametrize("door", [http, triton])
def test_nothing_grows(
    door: Callable[[Path, Path], AbstractContextManager[tuple[Client, int]]],
    demo_bundle: Path,
    tmp_path: Path,
) -> None:
    with door(demo_bundle, tmp_path) as (client, process):
        before = None
        for number in range(REQUESTS):
            if number == WARM:
                before = usage(process)
            config = {**TINY, "prompt": f"lake {number}", "seed": number}
            assert b"".join(client.generate({"config": config}, lambda _: None))[4:8] == b"ftyp"
        assert before is not None
        # what the last request holds goes a little after its answer
        waited(lambda: usage(process).handles <= before.handles, f"handles as in {before}")
        waited(lambda: usage(process).threads <= before.threads, f"threads as in {before}")
        after = usage(process)
        print(f"\nafter {WARM}: {before}, after {REQUESTS}: {after}")
        assert after.shared == before.shared
        assert after.memory < before.memory + ROOM
