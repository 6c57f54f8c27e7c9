"""A real `ltx2rt serve` process for tests, and a plain client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = {"prompt": "a lake", "size": "64x64", "num_frames": 9}
#: a clip of several fragments: a file that is seen to grow
LONGER = {"prompt": "a lake", "size": "64x64", "num_frames": 49}
PATIENCE_S = 120


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    data: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        found = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def create(self, **fields: Any) -> str:
        answer = self.call("POST", "/v1/videos", fields)
        assert answer.status == 200, answer
        return str(answer.json["id"])

    def video(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/v1/videos/{job}").json
        return found

    def until(self, job: str, *states: str) -> dict[str, Any]:
        return waited(
            lambda: v if (v := self.video(job))["status"] in states else None, f"{job} {states}"
        )

    def finished(self, job: str) -> dict[str, Any]:
        return self.until(job, "completed", "failed")

    def content(self, job: str) -> bytes:
        return self.call("GET", f"/v1/videos/{job}/content").body

    def worker(self) -> int:
        """Process id of its worker."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        found = [int(pid) for path in children for pid in path.read_text().split()]
        assert len(found) == 1
        return found[0]

    def end(self) -> int:
        """SIGTERM; gives its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def waited(look: Callable[[], Any], what: str) -> Any:
    """What `look` gives once it gives something."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


@contextmanager
def serving(
    bundle: Path, folder: Path, *flags: object, others: Sequence[Path] = ()
) -> Iterator[Server]:
    """A server of a bundle, and of others, on a free port; what it logs is in `folder`."""
    folder.mkdir(exist_ok=True)
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [
        sys.executable, "-m", "ltx2rt", "serve", bundle, *others, "--data", folder / "data",
        "--port", 0, "--threads", 1, *flags,
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen([str(c) for c in command], stderr=file, env={**os.environ})
    try:

        def port() -> int | None:
            assert process.poll() is None, log.read_text()
            lines = [json.loads(x) for x in log.read_text().splitlines() if x.startswith("{")]
            found = [x["message"] for x in lines if x.get("kind") == "listening"]
            return int(found[0].rpartition(":")[2]) if found else None

        server = Server(process, waited(port, "a port"), folder / "data", log)
        waited(lambda: _answers(server), "an answer")
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _answers(server: Server) -> bool:
    try:
        return server.call("GET", "/health").status == 200
    except OSError:
        return False
