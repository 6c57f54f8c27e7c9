"""The Triton model against a stand-in of the server's backend, and the repository's files."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ltx2rt.cli.triton import parse_clip_size
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT, RuntimeConfig
from ltx2rt.errors import EngineError, OptionError
from ltx2rt.progress import Cancelled
from ltx2rt.service.events import Event
from ltx2rt.service.sources import Allowed
from ltx2rt.service.triton import model as triton_model
from ltx2rt.service.triton import state, text_model
from ltx2rt.service.triton.canary import TritonPythonModel as Canary
from ltx2rt.service.triton.repository import RepositoryConfig, write_repository
from ltx2rt.service.triton.settings import ModelSettings

PIECES = [b"ftyp", b"moof", b"mdat"]
FRAMES = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)


class TritonError:
    CANCELLED, INVALID_ARG, INTERNAL, UNAVAILABLE = range(4)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Backend:
    """What a model asks of `triton_python_backend_utils`."""

    TritonError = TritonError
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    Logger = SimpleNamespace(log_info=lambda text: None)

    @staticmethod
    def Tensor(name: str, data: Any) -> Any:  # noqa: N802
        return SimpleNamespace(name=name, as_numpy=lambda: data)

    @staticmethod
    def InferenceResponse(output_tensors: list[Any], error: Any = None) -> Any:  # noqa: N802
        return SimpleNamespace(tensors={t.name: t.as_numpy() for t in output_tensors}, error=error)

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        if name == "CONTEXT":
            found = request.context
            return None if found is None else Backend.Tensor(name, np.frombuffer(found, np.uint8))
        return Backend.Tensor(name, np.array([[request.text]], dtype=np.object_))


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
    #: prompts of the clips that were made
    made: list[str]
    contexts: bytes | None = None

    def __init__(self, *_: Any) -> None: ...

    def make(
        self, order: Any, write: Any, emit: Any, cancel: Any, *, contexts: Path | None = None
    ) -> dict[str, Any]:
        self.made.append(order.request.config.prompt)
        Maker.contexts = contexts and contexts.read_bytes()
        emit(Event(kind="progress", data={"stage": "stage_1"}))
        if order.preview:
            emit(Event(kind="preview", data={"webp": f"every {order.preview}"}))
        if cancel.is_set():
            raise Cancelled("cancelled in stage_1, step 1 of 8.")
        if self.error is not None:
            raise self.error
        clip = SimpleNamespace(
            save=lambda stream, **_: [stream.write(p) for p in PIECES],
            num_frames=3, height=2, width=2, frames=iter(np.split(FRAMES, [1])),
        )  # fmt: skip
        timings = {"total": 1.0}
        facts = write(clip, "video", emit)
        return {"seed": order.request.config.seed, "timings_s": timings, **facts}

    def close(self) -> None: ...


SETTINGS = ModelSettings(
    model="ltx2_generate", instance="ltx2_generate_0", bundle=None,  # type: ignore[arg-type]
    runtime=RuntimeConfig(threads=1), allowed=Allowed(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_model, "Maker", Maker)
    monkeypatch.setattr(Maker, "error", None)
    monkeypatch.setattr(Maker, "made", [], raising=False)
    monkeypatch.setattr(state, "_folder", lambda: tmp_path)


@pytest.fixture
def model() -> triton_model.Model:
    return triton_model.Model(Backend, SETTINGS)


def ask(
    model: triton_model.Model, config: Any, *, gone: bool = False, context: bytes | None = None,
    **parameters: Any,
) -> Sender:  # fmt: skip
    sender = Sender()
    sender.gone = gone
    text = config if isinstance(config, bytes) else json.dumps({"config": config}).encode()
    request = SimpleNamespace(
        text=text, context=context, get_response_sender=lambda: sender,
        parameters=lambda: json.dumps(parameters),
    )  # fmt: skip
    model.execute([request])
    assert sender.is_final
    return sender


def events(sender: Sender) -> list[dict[str, Any]]:
    return [json.loads(r.tensors["EVENT"].item()) for r in sender.sent]


def test_modes(model: triton_model.Model) -> None:
    streamed = ask(model, {"prompt": "a", "seed": 7})
    assert [e["event"] for e in events(streamed)] == ["progress", *["fragment"] * 3, "result"]
    assert b"".join(r.tensors["CHUNK"].tobytes() for r in streamed.sent) == b"".join(PIECES)
    assert events(streamed)[-1]["seed"] == 7
    [single] = ask(model, {"prompt": "a"}, mode="single").sent
    assert single.tensors["CHUNK"].tobytes() == b"".join(PIECES)
    texts = [e["base64"] for e in events(ask(model, {"prompt": "a"}, mode="text")) if "base64" in e]
    assert [base64.b64decode(t) for t in texts] == PIECES
    frames = [r.tensors["FRAMES"] for r in ask(model, {"prompt": "a"}, mode="frames").sent[1:-1]]
    assert [f.shape for f in frames] == [(1, 1, 2, 2, 3), (1, 2, 2, 2, 3)]
    np.testing.assert_array_equal(np.concatenate(frames, axis=1)[0], FRAMES)
    [raw] = ask(model, {"prompt": "a"}, mode="raw", preview=1).sent
    np.testing.assert_array_equal(raw.tensors["FRAMES"][0], FRAMES)


def test_contexts_previews_and_the_warm_up(model: triton_model.Model) -> None:
    told = events(ask(model, {"prompt": "a"}, context=b"contexts", preview=2))
    assert [e["webp"] for e in told if e["event"] == "preview"] == ["every 2"]
    assert Maker.contexts == b"contexts"
    whole = {"config": {"prompt": "a"}, "preview": 3}  # as the other servers are asked
    told = events(ask(model, json.dumps(whole).encode()))
    assert [e["webp"] for e in told if e["event"] == "preview"] == ["every 3"]
    assert "preview" not in {e["event"] for e in events(ask(model, {"prompt": "a"}))}
    assert Maker.contexts is None
    Maker.made.clear()
    warm = dataclasses.replace(SETTINGS, warm_up='{"config": {"prompt": "warm up"}}')
    triton_model.Model(Backend, warm)
    assert Maker.made == ["warm up"]


@pytest.mark.parametrize(
    ("config", "parameters", "said"),
    [
        (b"{", {}, "is not JSON"),
        (b"\xff", {}, "is not UTF-8"),
        ({"prompt": "a"}, {"mode": "x"}, "allowed: stream, single"),
        ({"prompt": "a"}, {"preview": -1}, "not a number of steps"),
        ({"prompt": "a"}, {"preview": True}, "not a number of steps"),
        ({"prompt": "a", "images": [{"path": "/etc/passwd"}]}, {}, "may name"),
        ({"prompt": "a", "width": 10**6}, {}, "this server allows"),
    ],
)
def test_bad_requests(model: triton_model.Model, config: Any, parameters: Any, said: str) -> None:
    [answer] = ask(model, config, **parameters).sent
    assert answer.error.code == TritonError.INVALID_ARG
    assert said in answer.error.message
    assert events(ask(model, {"prompt": "a"}))[-1]["event"] == "result"


def test_what_is_no_video_is_refused_before_it_is_made(model: triton_model.Model) -> None:
    whole = {"pipeline": "text-to-audio", "config": {"prompt": "a"}}
    [answer] = ask(model, json.dumps(whole).encode()).sent
    assert "text-to-audio makes audio" in answer.error.message
    assert Maker.made == []


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


class Encoder:
    """Contexts whose numbers say which prompt they are of."""

    batches: list[list[str]]
    error: Exception | None = None

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, prompts: list[str]) -> dict[str, TextContext]:
        self.batches.append(prompts)
        if self.error is not None:
            raise self.error
        rows = {p: np.full((1, 1, 1), len(p), np.float32) for p in prompts}
        return {p: TextContext(row, row) for p, row in rows.items()}

    def write(self, path: Path, prompts: Any, contexts: dict[str, TextContext]) -> None:
        path.write_text(",".join(f"{p}={contexts[p].video.item():g}" for p in prompts))

    def close(self) -> None: ...


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> text_model.TextModel:
    monkeypatch.setattr(text_model, "Encoder", Encoder)
    monkeypatch.setattr(Encoder, "batches", [], raising=False)
    monkeypatch.setattr(Encoder, "error", None)
    return text_model.TextModel(Backend, dataclasses.replace(SETTINGS, instance="text"))


def encode(model: text_model.TextModel, *asked: tuple[str, dict[str, Any]]) -> list[Any]:
    requests = [
        SimpleNamespace(text=prompt.encode(), parameters=lambda p=p: json.dumps(p))  # type: ignore[misc]
        for prompt, p in asked
    ]
    return model.execute(requests)


def test_prompts_that_come_together_are_encoded_together(encoder: text_model.TextModel) -> None:
    guided = {"pipeline": "one-stage", "negative_prompt": "bad", "mode": "text", "seed": 3}
    first, bad, second, unknown = encode(
        encoder, ("a", {"width": 64}), (" ", {}), ("abc", guided), ("x", {"pipeline": "one-stge"})
    )
    assert Encoder.batches == [["a", "abc", "bad"]]
    assert first.tensors["CONTEXT"].tobytes() == b"a=1"
    assert json.loads(first.tensors["REQUEST"].item()) == {
        "pipeline": "distilled", "config": {"prompt": "a", "width": 64},
    }  # fmt: skip
    assert second.tensors["CONTEXT"].tobytes() == b"abc=3,bad=3"
    assert json.loads(second.tensors["REQUEST"].item()) == {
        "pipeline": "one-stage", "config": {"prompt": "abc", "seed": 3},
        "guidance": {"negative_prompt": "bad"},
    }  # fmt: skip
    assert bad.error.code == unknown.error.code == TritonError.INVALID_ARG
    assert "PROMPT is empty" in bad.error.message
    assert "did you mean 'one-stage'" in unknown.error.message
    asked = text_model.asked_of("a", {"pipeline": "one-stage"})
    assert asked.prompts == ("a", DEFAULT_NEGATIVE_PROMPT)
    with pytest.raises(OptionError, match="has 20001 characters; this server allows 20000"):
        text_model.asked_of("a" * 20_001, {})


def test_a_broken_encoder_says_so(
    encoder: text_model.TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert health().error is None
    monkeypatch.setattr(Encoder, "error", EngineError("CUDA says no"))
    [answer] = encode(encoder, ("a", {}))
    assert answer.error.code == TritonError.INTERNAL
    assert health().error.code == TritonError.UNAVAILABLE
    monkeypatch.setattr(Encoder, "error", None)
    [answer] = encode(encoder, ("a", {}))
    assert "unload this model" in answer.error.message
    encoder.close()


def test_the_repository(tmp_path: Path) -> None:
    config = RepositoryConfig(bundle=tmp_path / 'a"b', instances=2, gpus=(0, 2), timeout_s=1.5)
    names = write_repository(tmp_path / "repo", config)
    assert sorted(n for n in names if n.endswith(".py")) == [
        f"models/{name}/1/model.py" for name in ("ltx2_generate", "ltx2_health", "ltx2_text_encode")
    ]
    assert (tmp_path / "repo/models/ltx2_clip/1").is_dir()
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
    with pytest.raises(OptionError, match="text_gpus="):
        RepositoryConfig(bundle=tmp_path, text_gpus=(1, 1))


def test_a_repository_that_warms_up_elsewhere(tmp_path: Path) -> None:
    config = RepositoryConfig(
        bundle=tmp_path, gpus=(0,), text_gpus=(1,), warm_up=(768, 512, 121),
        environment=tmp_path / "env.tar.gz",
    )  # fmt: skip
    write_repository(tmp_path / "repo", config)
    models = tmp_path / "repo/models"
    assert "gpus: [ 1 ]" in (models / "ltx2_text_encode/config.pbtxt").read_text()
    for name in ("ltx2_generate", "ltx2_text_encode", "ltx2_health"):
        for place in ("config.pbtxt", "configs/cpu.pbtxt"):
            text = (models / name / place).read_text()
            said = f'"EXECUTION_ENV_PATH" value {{ string_value: "{tmp_path}/env.tar.gz" }}'
            assert said in text
            assert ("warm up" in text) == (name != "ltx2_health")
    write_repository(tmp_path / "none", RepositoryConfig(bundle=tmp_path, has_text=False))
    assert sorted(p.name for p in (tmp_path / "none/models").iterdir()) == [
        "ltx2_generate", "ltx2_health",
    ]  # fmt: skip


def test_sizes_of_the_warm_up_are_read() -> None:
    assert parse_clip_size("768x512x121") == (768, 512, 121)
    for text in ("", "768x512", "768x512x121x1", "axbxc", "-1x2x3", "768x512x1000000"):
        with pytest.raises(argparse.ArgumentTypeError, match="768x512x121"):
            parse_clip_size(text)
