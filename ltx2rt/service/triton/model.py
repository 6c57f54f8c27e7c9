"""`ltx2_generate`: a decoupled model of Triton's Python backend that holds the whole runtime.

A request is one JSON text, answered by any number of responses: progress, pieces of a fragmented
mp4, then the result. Triton's own queue does the rest: limits, priorities, timeouts.
"""

from __future__ import annotations

import base64
import importlib
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import EngineError, Ltx2rtError, OptionError
from ltx2rt.plain_data import parse_json
from ltx2rt.results.clip import Clip
from ltx2rt.service.events import Event, error_event
from ltx2rt.service.limits import Limits
from ltx2rt.service.maker import Emit, Maker, Write, into_stream
from ltx2rt.service.requests import read_order
from ltx2rt.service.sources import Allowed, Sources
from ltx2rt.service.triton.state import InstanceState

logger = logging.getLogger(__name__)
#: how a clip is answered: mp4 pieces as they are made; one response with all of it; decoded frames;
#: or pieces as base64 text, for clients of `generate_stream`, which is JSON
MODES = ("stream", "single", "frames", "text")


class Model:
    """One instance.

    Args:
        backend: `triton_python_backend_utils`.
        arguments: what Triton gives to `initialize`.
    """

    def __init__(self, backend: Any, arguments: dict[str, str]) -> None:
        self._backend = backend
        config = json.loads(arguments["model_config"])
        said = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        is_gpu = arguments.get("model_instance_kind") == "GPU"
        runtime = RuntimeConfig(
            residency="resident",
            threads=int(said.get("threads", "0")),
            device=int(arguments["model_instance_device_id"]) if is_gpu else None,
        )
        weights = said.get("weights_dir")
        bundle = open_bundle(Path(said["bundle"]), weights_dir=Path(weights) if weights else None)
        media, loras = (Path(said[n]) if said.get(n) else None for n in ("media_dir", "lora_dir"))
        self._allowed = Allowed(media_dir=media, lora_dir=loras)
        self._limits = Limits()
        self._maker = Maker(bundle, runtime)
        self._state = InstanceState(arguments["model_name"], arguments["model_instance_name"])
        self._state.write("ready")
        self._is_broken = False

    def close(self) -> None:
        """Triton unloads it."""
        self._maker.close()
        self._state.remove()

    def execute(self, requests: list[Any]) -> None:
        """Answer each request, one after another."""
        for request in requests:
            self._answer(request)

    def _answer(self, request: Any) -> None:
        answer = Answer(self._backend, request)
        if self._is_broken:
            text = "the device failed: unload this model and load it again."
            return answer.fail("UNAVAILABLE", text)
        self._state.write("busy")
        try:
            self._make(answer)
        except (Ltx2rtError, MemoryError, OSError) as error:
            self._is_broken = isinstance(error, EngineError)
            answer.fail_with(error)
        finally:
            self._state.write("broken" if self._is_broken else "ready")

    def _make(self, answer: Answer) -> None:
        mode = answer.parameters.get("mode", "stream")
        if mode not in MODES:
            raise OptionError(f"mode={mode!r}; allowed: {', '.join(MODES)}")
        with _folder() as folder:
            sources = Sources(folder=folder, allowed=self._allowed, limits=self._limits)
            order = read_order(answer.request(), sources)
            self._maker.check(order)
            is_told = mode != "single"

            def emit(event: Event) -> None:
                if is_told and event.kind == "progress":
                    answer.send(event)

            held: list[bytes] = []
            result = self._maker.make(order, answer.writer(mode, held), emit, answer.cancel)
        answer.send(Event(kind="result", data=result), b"".join(held))
        answer.end()


class Answer:
    """The responses to one request.

    Args:
        backend: `triton_python_backend_utils`.
        request: Triton's.
    """

    def __init__(self, backend: Any, request: Any) -> None:
        self._backend = backend
        self._request = request
        self._sender = request.get_response_sender()
        self.cancel = _Cancel(self._sender)
        self.parameters: dict[str, Any] = json.loads(request.parameters() or "{}")

    def request(self) -> Any:
        """The JSON data that was sent.

        Raises:
            OptionError: it is not JSON.
        """
        tensor = self._backend.get_input_tensor_by_name(self._request, "REQUEST")
        found = tensor.as_numpy().reshape(-1)
        if len(found) != 1:
            raise OptionError(f"REQUEST holds {len(found)} texts; one is made at a time")
        try:
            return parse_json(bytes(found[0]).decode("utf-8"))
        except ValueError as error:
            raise OptionError(f"REQUEST is not JSON: {error}") from error

    def send(self, event: Event, data: bytes = b"", frames: Any = None) -> None:
        """One response."""
        text = json.dumps(event.plain, ensure_ascii=False, default=str).encode()
        tensor = self._backend.Tensor
        parts = [tensor("EVENT", np.array([text], dtype=np.object_))]
        parts.append(tensor("CHUNK", np.frombuffer(data, np.uint8)))
        if frames is not None:
            parts.append(tensor("FRAMES", frames))
        self._sender.send(self._backend.InferenceResponse(output_tensors=parts))

    def end(self) -> None:
        """No more responses."""
        self._sender.send(flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail_with(self, error: BaseException) -> None:
        """The last response: an error of ours as one of Triton's."""
        event = error_event(error).data
        codes = {"Cancelled": "CANCELLED", "EngineError": "INTERNAL", "OutOfMemory": "UNAVAILABLE"}
        default = "INVALID_ARG" if isinstance(error, Ltx2rtError) else "INTERNAL"
        self.fail(codes.get(event["kind"], default), f"{event['kind']}: {event['message']}")

    def fail(self, code: str, message: str) -> None:
        """The last response, an error."""
        error = self._backend.TritonError(message, getattr(self._backend.TritonError, code))
        self._sender.send(
            self._backend.InferenceResponse(output_tensors=[], error=error),
            flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )

    def writer(self, mode: str, held: list[bytes]) -> Write:
        """Writes a clip into responses of this mode; `single` holds the bytes back."""
        if mode == "frames":
            return self._frames
        return into_stream(cast(BinaryIO, _Pieces(self, mode, held)))

    def _frames(self, clip: Clip, kind: str, emit: Emit) -> dict[str, Any]:
        count = 0
        for chunk in clip.frames:
            data = {"first": count, "frames": len(chunk)}
            count += len(chunk)
            self.send(Event(kind="fragment", data=data), frames=np.ascontiguousarray(chunk))
        return {"bytes": count * clip.height * clip.width * 3, "first_at": None}


class _Pieces:
    """A binary stream whose pieces are responses."""

    def __init__(self, answer: Answer, mode: str, held: list[bytes]) -> None:
        self._answer, self._mode, self._held = answer, mode, held
        self._count = 0

    def write(self, data: bytes) -> int:
        self._count += len(data)
        facts: dict[str, Any] = {"bytes": self._count}
        if self._mode == "single":
            self._held.append(bytes(data))
        elif self._mode == "text":
            facts["base64"] = base64.b64encode(data).decode()
            self._answer.send(Event(kind="fragment", data=facts))
        else:
            self._answer.send(Event(kind="fragment", data=facts), bytes(data))
        return len(data)

    def flush(self) -> None:
        pass


class _Cancel(threading.Event):
    """Set when the client does not want the answer any more."""

    def __init__(self, sender: Any) -> None:
        super().__init__()
        self._sender = sender

    def is_set(self) -> bool:
        return bool(self._sender.is_cancelled())


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ltx2rt-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class TritonPythonModel:
    """What Triton makes of `model.py`."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Once, when it is loaded."""
        self._model = Model(importlib.import_module("triton_python_backend_utils"), arguments)

    def execute(self, requests: list[Any]) -> None:
        """For every request; answers go through its sender."""
        self._model.execute(requests)

    def finalize(self) -> None:
        """Once, when it is unloaded."""
        self._model.close()
