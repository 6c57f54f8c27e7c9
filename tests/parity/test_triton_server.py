"""The model repository on a real Triton Inference Server: `pytest -m server tests/parity`."""

from __future__ import annotations

import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ltx2rt
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.http_server import waited
from tests.parity.triton_server import Triton, packed_environment, triton_server
from tests.unit.test_house_rules import ROOT

pytestmark = pytest.mark.server

SMALL = {"prompt": "a lake", "height": 64, "width": 64, "num_frames": 9}
LONGER = {**SMALL, "num_frames": 121}


@pytest.fixture(scope="module")
def triton(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """With an environment that it unpacks itself, packed as its README says, and warmed up."""
    folder = tmp_path_factory.mktemp("triton")
    text = (ROOT / "ltx2rt/service/triton/files/README.md").read_text()
    [recipe] = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    made = run(
        "triton", demo_bundle, "-o", folder / "repo", "--threads", 1, "--max-queue", 2,
        "--timeout", 600, "--warm-up", "64x64x9",
        "--environment", packed_environment(recipe, folder),
    )  # fmt: skip
    assert made.code == 0, made
    with triton_server(folder / "repo/models", folder, on_path=False) as server:
        assert "warmed up in" in server.log.read_text()
        yield server


class Stream:
    """One client of the gRPC stream."""

    def __init__(self, triton: Triton) -> None:
        import tritonclient.grpc as grpc

        self._grpc = grpc
        self._client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
        self._answers: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def ask(
        self, config: Any, mode: str = "stream", priority: int = 2, context: Any = None, **said: Any
    ) -> None:
        text = config if isinstance(config, bytes) else json.dumps({"config": config}).encode()
        inputs = [self.text("REQUEST", text)]
        if context is not None:
            inputs.append(self._grpc.InferInput("CONTEXT", [*context.shape], "UINT8"))
            inputs[-1].set_data_from_numpy(context)
        self.infer("ltx2_generate", inputs, priority=priority, mode=mode, **said)

    def text(self, name: str, text: bytes) -> Any:
        tensor = self._grpc.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
        return tensor

    def infer(
        self, model: str, inputs: list[Any], priority: int = 0, timeout: int = 0, **said: Any
    ) -> None:
        self._client.async_stream_infer(
            model, inputs, parameters=said, priority=priority, timeout=timeout or None,
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
            yield json.loads(result.as_numpy("EVENT").item()), result

    def until(self, stage: str) -> None:
        """Read until a stage has begun."""
        for event, _ in self.answers():
            if event.get("stage") == stage:
                return
        raise AssertionError(f"the clip was made before {stage} was seen")

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream()
        self._client.close()


def instances(triton: Triton, model: str) -> list[tuple[int, str]]:
    """Process and state of a model's instances."""
    found = Path("/tmp").glob(f"ltx2rt-triton-{triton.process.pid}/{model}*.json")
    entries = [json.loads(path.read_text()) for path in found]
    return [(entry["process"], entry["state"]) for entry in entries]


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
        np.testing.assert_array_equal(np.concatenate(found, axis=1)[0], clip[1])


def posted(triton: Triton, model: str, body: dict[str, Any]) -> bytes:
    """The clip that server-sent events hold as text."""
    import base64

    address = f"http://127.0.0.1:{triton.http}/v2/models/{model}/generate_stream"
    data = b""
    with urllib.request.urlopen(
        urllib.request.Request(address, json.dumps(body).encode())
    ) as answer:
        for line in answer:
            if line.startswith(b"data:"):
                event = json.loads(json.loads(line[5:])["EVENT"])
                data += base64.b64decode(event.get("base64", ""))
    return data


def test_server_sent_events(triton: Triton, clip: tuple[bytes, Any]) -> None:
    body = {"REQUEST": json.dumps({"config": SMALL}), "mode": "text"}
    assert posted(triton, "ltx2_generate", body) == clip[0]


def test_a_prompt_is_all_that_the_ensemble_needs(triton: Triton, clip: tuple[bytes, Any]) -> None:
    import base64

    sizes = {name: SMALL[name] for name in ("height", "width", "num_frames")}
    with Stream(triton) as stream:
        stream.infer("ltx2_clip", [stream.text("PROMPT", b"a lake")], preview=4, **sizes)
        answers = [*stream.answers()]
        assert b"".join(r.as_numpy("CHUNK").tobytes() for _, r in answers) == clip[0]
        previews = [base64.b64decode(e["webp"]) for e, _ in answers if e["event"] == "preview"]
        shown = [Image.open(io.BytesIO(webp)) for webp in previews]
        # steps 4 and 8 of stage 1, the last of stage 2: a pixel for an eighth of a latent cell
        assert [(p.format, p.size) for p in shown] == [("WEBP", (8, 8))] * 2 + [("WEBP", (16, 16))]
        stream.infer("ltx2_clip", [stream.text("PROMPT", b"a lake")], heigth=1)
        with pytest.raises(Exception, match=r"heigth.*did you mean 'height'"):
            [*stream.answers()]
    body = {"PROMPT": "a lake", "mode": "text", **sizes}
    assert posted(triton, "ltx2_clip", body) == clip[0]


def test_prompts_are_encoded_together_and_apart(triton: Triton, clip: tuple[bytes, Any]) -> None:
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    answers: queue.Queue[Any] = queue.Queue()
    prompts = [b"a lake", *(b"prompt %d" % i for i in range(7))]
    with Stream(triton) as stream:
        for prompt in prompts:
            client.async_infer(
                "ltx2_text_encode", [stream.text("PROMPT", prompt)],
                lambda result, error: answers.put((result, error)),
                parameters={"height": 64, "width": 64, "num_frames": 9},
            )  # fmt: skip
        found = {}
        for _ in prompts:
            result, error = answers.get(timeout=120)
            assert error is None, error
            request = json.loads(result.as_numpy("REQUEST").item())
            found[request["config"]["prompt"]] = request, result.as_numpy("CONTEXT")
        [stats] = client.get_inference_statistics("ltx2_text_encode").model_stats
        assert stats.execution_count < stats.inference_count
        request, context = found["a lake"]
        assert request["config"] == SMALL
        stream.ask(json.dumps(request).encode(), context=context)
        assert b"".join(r.as_numpy("CHUNK").tobytes() for _, r in stream.answers()) == clip[0]
        stream.ask(SMALL, context=found["prompt 3"][1])
        with pytest.raises(
            Exception, match=r"contexts are of .*prompt 3.* needs those of .*a lake"
        ):
            [*stream.answers()]
    client.close()


def test_frames_through_shared_memory(
    triton: Triton, clip: tuple[bytes, Any], tmp_path: Path
) -> None:
    """The example of the repository's README, at a small size."""
    text = (ROOT / "ltx2rt/service/triton/files/README.md").read_text()
    [example] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    small = {"localhost:8001": f"localhost:{triton.grpc}", '"width": 768': '"width": 64',
             '"height": 512': '"height": 64', '"num_frames": 121': '"num_frames": 9',
             '("frames", c': f'("ltx2rt-test-{os.getpid()}-frames", c',
             '"/frames"': f'"/ltx2rt-test-{os.getpid()}-frames"'}  # fmt: skip
    for long, short in small.items():
        assert long in example
        example = example.replace(long, short)
    save = f'\nnp.save("{tmp_path}/pixels.npy", pixels)\n'
    done = subprocess.run(
        [sys.executable, "-c", example + save], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), clip[1])


def test_our_client(triton: Triton, clip: tuple[bytes, Any], tmp_path: Path) -> None:
    server, target = f"127.0.0.1:{triton.grpc}", tmp_path / "client.mp4"
    small = ("--height", 64, "--width", 64, "--num-frames", 9)
    made = run("client", "--triton", server, "--prompt", "a lake", *small, "-o", target)
    assert made.code == 0, made
    assert made.out == f"{target}: 9 frames, seed 10\n"
    assert "stage_2: 3/3" in made.err
    assert target.read_bytes() == clip[0]
    with unchanged(tmp_path):
        for flags, said in (
            (("--triton", server, "--width", 65), "Nearest valid"),
            (("--triton", "127.0.0.1:9"), "cannot ask 127.0.0.1:9"),
        ):
            expect_user_error(
                run("client", "--prompt", "x", *flags, "-o", tmp_path / "x.mp4"), said
            )


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


def is_idle(triton: Triton) -> bool:
    return [state for _, state in instances(triton, "ltx2_generate")] == ["ready"]


def test_a_slow_reader_keeps_nobody_waiting(triton: Triton, clip: tuple[bytes, Any]) -> None:
    """Who does not read holds neither the device nor the others, and misses nothing."""
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    answers: queue.Queue[Any] = queue.Queue()
    begun, go_on = threading.Event(), threading.Event()

    def slow(result: Any, error: Any) -> None:
        begun.set()
        assert go_on.wait(120)
        answers.put((result, error))

    client.start_stream(slow)
    with Stream(triton) as other:
        tensor = other.text("REQUEST", json.dumps({"config": SMALL}).encode())
        client.async_stream_infer("ltx2_generate", [tensor], parameters={"preview": 1})
        assert begun.wait(120)
        other.ask(SMALL)
        assert b"".join(r.as_numpy("CHUNK").tobytes() for _, r in other.answers()) == clip[0]
    go_on.set()
    data, event = b"", ""
    while event != "result":
        result, error = answers.get(timeout=120)
        assert error is None, error
        event = json.loads(result.as_numpy("EVENT").item())["event"]
        data += result.as_numpy("CHUNK").tobytes()
    assert data == clip[0]
    client.stop_stream()
    client.close()


def test_a_deadline_in_the_queue(triton: Triton) -> None:
    with Stream(triton) as first, Stream(triton) as second:
        first.ask(LONGER)
        next(first.answers())
        second.ask(SMALL, timeout=1000)  # a millisecond
        first.until("decode audio")  # by now it waits
        first.cancel()
        with pytest.raises(Exception, match=r"(?i)timeout expired|timed out|request timeout"):
            list(second.answers())
    waited(lambda: is_idle(triton), "the device to be free")


HANG_UP = """
import json, queue, sys
import numpy as np
import tritonclient.grpc as grpc
client = grpc.InferenceServerClient(sys.argv[1])
tensor = grpc.InferInput("REQUEST", [1, 1], "BYTES")
tensor.set_data_from_numpy(np.array([[sys.argv[2].encode()]], dtype=object))
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer("ltx2_generate", [tensor])
while True:
    result, error = answers.get(timeout=120)
    event = json.loads(result.as_numpy("EVENT").item())
    print(event.get("stage", event["event"]), flush=True)
"""


def test_a_client_that_dies_in_mid_decode(triton: Triton, clip: tuple[bytes, Any]) -> None:
    """Its clip ends at the next tile: the device is free for the next one."""
    longer = json.dumps({"config": {**SMALL, "num_frames": 801}})
    command = [sys.executable, "-c", HANG_UP, f"127.0.0.1:{triton.grpc}", longer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dying:
        assert dying.stdout is not None
        for line in dying.stdout:
            if line.strip() == "decode video":
                break
        dying.kill()
        said = dying.stdout.read()
    assert "result" not in said
    ended = "no clip: Cancelled: cancelled in decode video"
    waited(lambda: ended in triton.log.read_text(), "its end in the midst of decoding")
    waited(lambda: is_idle(triton), "the device to be free")
    with Stream(triton) as stream:
        stream.ask(SMALL)
        assert b"".join(r.as_numpy("CHUNK").tobytes() for _, r in stream.answers()) == clip[0]
    assert health(triton) == 200


def test_a_process_that_dies_twice_in_mid_clip_is_seen_and_replaced(
    triton: Triton, clip: tuple[bytes, Any]
) -> None:
    """Its client hears of it; unload and load bring the model back, as often as need be."""
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    for _ in range(2):
        assert health(triton) == 200
        with Stream(triton) as stream:
            stream.ask(LONGER)
            stream.until("decode video")
            [(process, _)] = instances(triton, "ltx2_generate")
            os.kill(process, signal.SIGKILL)
            with pytest.raises(Exception, match=r"(?i)stub|not healthy|restart|interrupted"):
                list(stream.answers())
        waited(lambda: health(triton) >= 400, "the canary to fail")
        client.unload_model("ltx2_generate")
        waited(lambda: not client.is_model_ready("ltx2_generate"), "the model to go")
        client.load_model("ltx2_generate", config=None)
        waited(lambda: health(triton) == 200, "the canary to be well again")
    client.close()
    with Stream(triton) as stream:
        stream.ask(SMALL)
        assert b"".join(r.as_numpy("CHUNK").tobytes() for _, r in stream.answers()) == clip[0]


def test_two_instances_work_side_by_side(demo_bundle: Path, tmp_path: Path) -> None:
    made = run("triton", demo_bundle, "-o", tmp_path / "repo", "--threads", 1, "--instances", 2)
    assert made.code == 0, made
    with (
        triton_server(tmp_path / "repo/models", tmp_path) as server,
        Stream(server) as one,
        Stream(server) as other,
    ):
        for stream in (one, other):
            stream.ask(LONGER)
        states = lambda: [s for _, s in instances(server, "ltx2_generate")]  # noqa: E731
        waited(lambda: states() == ["busy", "busy"], "two busy instances")
        both = instances(server, "ltx2_generate")
        assert len({process for process, _ in both}) == 2
        for stream in (one, other):
            stream.cancel()
