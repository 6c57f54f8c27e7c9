"""The Triton model against a stand-in of the server's backend, and the repository's files."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ltx2rt.errors import EngineError, OptionError
from ltx2rt.progress import Cancelled
from ltx2rt.service.events import Event
from ltx2rt.service.triton import model as triton_model
from ltx2rt.service.triton import state
from ltx2rt.service.triton.canary import TritonPythonModel as Canary
from ltx2rt.service.triton.repository import RepositoryConfig, write_repository

PIECES = [b"ftyp", b"moof", b"mdat"]


class TritonError:
    CANCELLED, INVALID_ARG, INTERNAL, UNAVAILABLE = range(4)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Backend:
    """What a model asks of `triton_python_backend_utils`."""

    TritonError = TritonError
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    @staticmethod
    def Tensor(name: str, data: Any) -> Any:  # noqa: N802
        return SimpleNamespace(name=name, as_numpy=lambda: data)

    @staticmethod
    def InferenceResponse(output_tensors: list[Any], error: Any = None) -> Any:  # noqa: N802
        return SimpleNamespace(tensors={t.name: t.as_numpy() for t in output_tensors}, error=error)

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: np.array([request.text], dtype=np.object_))


class Sender:
    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.is_final = False
        self.gone = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.is_final
        self.is_final = bool(flags)
        if response is not None:
            self.sent.append(response)

    def is_cancelled(self) -> bool:
        return self.gone


class Maker:
    """Makes a clip of three pieces, and fails as it is told to."""

    error: Exception | None = None

    def __init__(self, *_: Any) -> None: ...

    def check(self, order: Any) -> str:
        return "video"

    def make(self, order: Any, write: Any, emit: Any, cancel: Any) -> dict[str, Any]:
        emit(Event(kind="progress", data={"stage": "stage_1"}))
        if cancel.is_set():
            raise Cancelled("cancelled in stage_1, step 1 of 8.")
        if self.error is not None:
            raise self.error
        clip = SimpleNamespace(save=lambda stream, **_: [stream.write(p) for p in PIECES])
        return {"seed": order.request.config.seed, **write(clip, "video", emit)}

    def close(self) -> None: ...


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> triton_model.Model:
    monkeypatch.setattr(triton_model, "Maker", Maker)
    monkeypatch.setattr(triton_model, "open_bundle", lambda *_, **__: None)
    monkeypatch.setattr(Maker, "error", None)
    monkeypatch.setattr(state, "_folder", lambda: tmp_path)
    parameters = {"bundle": {"string_value": "B"}, "threads": {"string_value": "1"}}
    arguments = {
        "model_config": json.dumps({"parameters": parameters}),
        "model_name": "ltx2_generate",
        "model_instance_name": "ltx2_generate_0",
    }
    return triton_model.Model(Backend, arguments)


def ask(model: triton_model.Model, config: Any, *, gone: bool = False, **parameters: Any) -> Sender:
    sender = Sender()
    sender.gone = gone
    text = config if isinstance(config, bytes) else json.dumps({"config": config}).encode()
    request = SimpleNamespace(
        text=text, get_response_sender=lambda: sender, parameters=lambda: json.dumps(parameters)
    )
    model.execute([request])
    assert sender.is_final
    return sender


def events(sender: Sender) -> list[dict[str, Any]]:
    return [json.loads(r.tensors["EVENT"][0]) for r in sender.sent]


def test_modes(model: triton_model.Model) -> None:
    streamed = ask(model, {"prompt": "a", "seed": 7})
    assert [e["event"] for e in events(streamed)] == ["progress", *["fragment"] * 3, "result"]
    assert b"".join(r.tensors["CHUNK"].tobytes() for r in streamed.sent) == b"".join(PIECES)
    assert events(streamed)[-1]["seed"] == 7
    [single] = ask(model, {"prompt": "a"}, mode="single").sent
    assert single.tensors["CHUNK"].tobytes() == b"".join(PIECES)
    texts = [e["base64"] for e in events(ask(model, {"prompt": "a"}, mode="text")) if "base64" in e]
    assert [base64.b64decode(t) for t in texts] == PIECES


@pytest.mark.parametrize(
    ("config", "parameters", "said"),
    [
        (b"{", {}, "is not JSON"),
        (b"\xff", {}, "is not JSON"),
        ({"prompt": "a"}, {"mode": "x"}, "allowed: stream, single"),
        ({"prompt": "a", "images": [{"path": "/etc/passwd"}]}, {}, "may name"),
        ({"prompt": "a", "width": 10**6}, {}, "this server allows"),
    ],
)
def test_bad_requests(model: triton_model.Model, config: Any, parameters: Any, said: str) -> None:
    [answer] = ask(model, config, **parameters).sent
    assert answer.error.code == TritonError.INVALID_ARG
    assert said in answer.error.message
    assert events(ask(model, {"prompt": "a"}))[-1]["event"] == "result"


def health() -> Any:
    canary = Canary()
    canary._backend = Backend
    [answer] = canary.execute([None])
    return answer


def test_cancel_failure_and_the_canary(
    model: triton_model.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended = ask(model, {"prompt": "a"}, gone=True).sent[-1]
    assert ended.error.code == TritonError.CANCELLED
    monkeypatch.setattr(Maker, "error", OptionError("no"))
    assert ask(model, {"prompt": "a"}).sent[-1].error.code == TritonError.INVALID_ARG
    assert health().error is None
    monkeypatch.setattr(Maker, "error", EngineError("CUDA says no"))
    assert ask(model, {"prompt": "a"}).sent[-1].error.code == TritonError.INTERNAL
    assert ask(model, {"prompt": "a"}).sent[-1].error.code == TritonError.UNAVAILABLE
    assert health().error.code == TritonError.UNAVAILABLE
    model.close()
    assert not [*tmp_path.iterdir()]
    assert health().error is not None


def test_the_canary_sees_a_dead_process(model: triton_model.Model, tmp_path: Path) -> None:
    assert health().error is None
    [path] = tmp_path.iterdir()
    gone = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(gone, 0)
    path.write_text(path.read_text().replace(str(os.getpid()), str(gone)))
    assert '"state": "dead"' in health().error.message


def test_the_repository(tmp_path: Path) -> None:
    config = RepositoryConfig(bundle=tmp_path / 'a"b', instances=2, gpus=(0, 2), timeout_s=1.5)
    names = write_repository(tmp_path / "repo", config)
    assert sorted(n for n in names if n.endswith(".py")) == [
        "models/ltx2_generate/1/model.py", "models/ltx2_health/1/model.py",
    ]  # fmt: skip
    text = (tmp_path / "repo/models/ltx2_generate/config.pbtxt").read_text()
    assert "count: 2 kind: KIND_GPU gpus: [ 0, 2 ]" in text
    assert "default_timeout_microseconds: 1500000 timeout_action: REJECT" in text
    assert f'string_value: "{tmp_path}/a\\"b"' in text
    for name in names:
        assert "@" not in (tmp_path / "repo" / name).read_text().replace("a@b", "")
    with pytest.raises(OptionError, match="not an empty folder"):
        write_repository(tmp_path / "repo", config)
    with pytest.raises(OptionError, match="instances=0"):
        RepositoryConfig(bundle=tmp_path, instances=0)
