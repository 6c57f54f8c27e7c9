"""The model repository on a real Triton Inference Server: `pytest -m server tests/parity`."""

from __future__ import annotations

import io
import json
import os
import queue
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt
from tests.parity.command_line import ltx2rt as run
from tests.parity.http_server import waited
from tests.parity.triton_server import Triton, triton_server

pytestmark = pytest.mark.server

SMALL = {"prompt": "a lake", "height": 64, "width": 64, "num_frames": 9}
LONGER = {**SMALL, "num_frames": 121}


@pytest.fixture(scope="module")
def triton(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("triton")
    made = run("triton", demo_bundle, "-o", folder / "repo", "--threads", 1, "--max-queue", 2)
    assert made.code == 0, made
    with triton_server(folder / "repo/models", folder) as server:
        yield server


class Stream:
    """One client of the gRPC stream."""

    def __init__(self, triton: Triton) -> None:
        import tritonclient.grpc as grpc

        self._grpc = grpc
        self._client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
        self._answers: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def ask(self, config: Any, mode: str = "stream", priority: int = 2, **more: Any) -> None:
        tensor = self._grpc.InferInput("REQUEST", [1], "BYTES")
        text = (
            config if isinstance(config, bytes) else json.dumps({"config": config, **more}).encode()
        )
        tensor.set_data_from_numpy(np.array([text], dtype=np.object_))
        self._client.async_stream_infer(
            "ltx2_generate", [tensor], parameters={"mode": mode}, priority=priority,
            enable_empty_final_response=True,
        )  # fmt: skip

    def answers(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Event and result of every response, until the last one."""
        while True:
            result, error = self._answers.get(timeout=120)
            if error is not None:
                raise error
            if result.get_response().parameters["triton_final_response"].bool_param:
                return
            yield json.loads(result.as_numpy("EVENT")[0]), result

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream()
        self._client.close()


def health(triton: Triton) -> int:
    body = {"inputs": [{"name": "PING", "shape": [1], "datatype": "BOOL", "data": [True]}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{triton.http}/v2/models/ltx2_health/infer", json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def clip(demo_bundle: Path) -> tuple[bytes, Any]:
    """The same clip without a server: its mp4 and its frames."""
    stream = io.BytesIO()
    with ltx2rt.DistilledPipeline(
        ltx2rt.open_bundle(demo_bundle), ltx2rt.RuntimeConfig(threads=1)
    ) as pipe:
        made = pipe(**SMALL)
        frames = np.concatenate(list(made.frames))
        made.save(stream)
    return stream.getvalue(), frames


def test_pieces_equal_the_python_api(triton: Triton, clip: tuple[bytes, Any]) -> None:
    with Stream(triton) as stream:
        stream.ask(SMALL)
        events, data = [], b""
        for event, result in stream.answers():
            events.append(event["event"])
            data += result.as_numpy("CHUNK").tobytes()
        assert {"progress", "fragment"} <= {*events}
        assert events[-1] == "result"
        assert data == clip[0]
        stream.ask(SMALL, mode="single")
        [(event, result)] = list(stream.answers())
        assert result.as_numpy("CHUNK").tobytes() == clip[0]
        stream.ask(SMALL, mode="frames")
        found = [r.as_numpy("FRAMES") for e, r in stream.answers() if e["event"] == "fragment"]
        np.testing.assert_array_equal(np.concatenate(found), clip[1])


def test_server_sent_events(triton: Triton, clip: tuple[bytes, Any]) -> None:
    import base64

    body = {"REQUEST": json.dumps({"config": SMALL}), "mode": "text"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{triton.http}/v2/models/ltx2_generate/generate_stream",
        json.dumps(body).encode(),
    )
    data = b""
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data:"):
                event = json.loads(json.loads(line[5:])["EVENT"])
                data += base64.b64decode(event.get("base64", ""))
    assert data == clip[0]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"{", "is not JSON"),
        ({**SMALL, "height": 65}, "Nearest valid"),
        ({**SMALL, "num_frames": 100_000}, "this server allows"),
        ({**SMALL, "images": [{"path": "/etc/passwd"}]}, "is not a file that requests may name"),
    ],
)
def test_bad_requests_leave_it_serving(triton: Triton, request_: Any, said: str) -> None:
    with Stream(triton) as stream:
        stream.ask(request_)
        with pytest.raises(Exception, match=rf"(?s)\w+Error: .*{re.escape(said)}"):
            list(stream.answers())
    assert health(triton) == 200


def test_cancel_and_queue(triton: Triton, clip: tuple[bytes, Any]) -> None:
    """Eight clients at once, of which the queue takes some; one that goes away frees it."""
    with Stream(triton) as first:
        first.ask(LONGER)
        next(first.answers())
        outcomes: list[str] = []

        def client(number: int) -> None:
            with Stream(triton) as stream:
                stream.ask(SMALL, priority=1 + number % 2)
                try:
                    data = b"".join(r.as_numpy("CHUNK").tobytes() for _, r in stream.answers())
                    outcomes.append("made" if data == clip[0] else "wrong")
                except Exception as error:  # the client's own class
                    full = "maximum queue size" in str(error)
                    outcomes.append("refused" if full else str(error))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        waited(lambda: "refused" in outcomes, "a queue that is full")
        first.cancel()
        for thread in threads:
            thread.join(120)
    assert len(outcomes) == 8
    assert outcomes.count("made") == 4  # two of each priority
    assert outcomes.count("refused") == 4


def test_a_dead_process_is_seen_and_replaced(triton: Triton) -> None:
    assert health(triton) == 200
    found = [
        json.loads(p.read_text())["process"]
        for p in Path("/tmp").glob(f"ltx2rt-triton-{triton.process.pid}/*.json")
    ]
    os.kill(found[0], signal.SIGKILL)
    waited(lambda: health(triton) >= 400, "the canary to fail")
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    client.unload_model("ltx2_generate")
    waited(lambda: not client.is_model_ready("ltx2_generate"), "the model to go")
    client.load_model("ltx2_generate", config=None)
    client.close()
    waited(lambda: health(triton) == 200, "the canary to be well again")
    with Stream(triton) as stream:
        stream.ask(SMALL)
        assert [e["event"] for e, _ in stream.answers()][-1] == "result"
