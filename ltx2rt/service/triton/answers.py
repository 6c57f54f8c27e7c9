"""What a model of ours reads of Triton's requests, and how it answers them."""

from __future__ import annotations

import base64
import json
import threading
from typing import Any, BinaryIO, cast

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import Ltx2rtError, OptionError
from ltx2rt.plain_data import parse_json
from ltx2rt.results.clip import Clip
from ltx2rt.service.events import Event, error_event
from ltx2rt.service.maker import Emit, Write, into_stream

#: request parameters of `ltx2_generate`
MODE, PREVIEW = "mode", "preview"
#: how a clip is answered: mp4 pieces as they are made; one response with all of it; decoded frames
#: in several responses, or in one; pieces as base64 text, for clients of `generate_stream`, which
#: is JSON
MODES = ("stream", "single", "frames", "raw", "text")
#: modes whose clip is one response: nothing is told before it
ONE_RESPONSE = ("single", "raw")


def one_text(backend: Any, request: Any, name: str) -> str:
    """The text of an input.

    Raises:
        OptionError: it holds several, or is not UTF-8.
    """
    found = backend.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
    if len(found) != 1:
        raise OptionError(f"{name} holds {len(found)} texts; a request has one")
    try:
        return bytes(found[0]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name} is not UTF-8: {error}") from error


def triton_error(backend: Any, error: BaseException) -> Any:
    """An error of ours as one of Triton's."""
    event = error_event(error).data
    codes = {
        "Cancelled": "CANCELLED", "OutOfMemory": "UNAVAILABLE",
        "EngineError": "INTERNAL", "DeviceLostError": "INTERNAL",
    }  # fmt: skip
    default = "INVALID_ARG" if isinstance(error, Ltx2rtError) else "INTERNAL"
    code = getattr(backend.TritonError, codes.get(event["kind"], default))
    return backend.TritonError(f"{event['kind']}: {event['message']}", code)


class Answer:
    """The responses to one request; every tensor has a batch dimension of 1.

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
        text = one_text(self._backend, self._request, "REQUEST")
        try:
            return parse_json(text)
        except ValueError as error:
            raise OptionError(f"REQUEST is not JSON: {error}") from error

    def context(self) -> bytes | None:
        """The text contexts that came with it, if any did."""
        tensor = self._backend.get_input_tensor_by_name(self._request, "CONTEXT")
        return None if tensor is None else tensor.as_numpy().tobytes()

    def preview_every(self) -> int:
        """Steps between two previews; 0: none are wanted.

        Raises:
            OptionError: that is no number of steps.
        """
        asked = self.parameters.get(PREVIEW, 0)
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
            raise OptionError(f"{PREVIEW}={asked!r} is not a number of steps")
        return asked

    def send(self, event: Event, data: bytes = b"", frames: Array | None = None) -> None:
        """One response."""
        text = json.dumps(event.plain, ensure_ascii=False, default=str).encode()
        tensor = self._backend.Tensor
        parts = [tensor("EVENT", np.array([[text]], dtype=np.object_))]
        parts.append(tensor("CHUNK", np.frombuffer(data, np.uint8)[None]))
        if frames is not None:
            parts.append(tensor("FRAMES", np.ascontiguousarray(frames)[None]))
        self._sender.send(self._backend.InferenceResponse(output_tensors=parts))

    def end(self) -> None:
        """No more responses."""
        self._sender.send(flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail_with(self, error: BaseException) -> None:
        """The last response, an error."""
        self._fail(triton_error(self._backend, error))

    def refuse(self, message: str) -> None:
        """The last response: not here, not now."""
        self._fail(self._backend.TritonError(message, self._backend.TritonError.UNAVAILABLE))

    def _fail(self, error: Any) -> None:
        self._sender.send(
            self._backend.InferenceResponse(output_tensors=[], error=error),
            flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )


class Sink:
    """Where a clip goes, by the mode that its client asked for.

    Attributes:
        data: of the clip, for the one response of `single`.
        frames: the same for `raw`: `[F, H, W, 3]` uint8.
    """

    def __init__(self, answer: Answer, mode: str) -> None:
        if mode not in MODES:
            raise OptionError(f"mode={mode!r}; allowed: {', '.join(MODES)}")
        self._answer, self.mode = answer, mode
        self._pieces: list[bytes] = []
        self.frames: Array | None = None
        self._count = 0

    @property
    def data(self) -> bytes:
        """What was held back."""
        return b"".join(self._pieces)

    @property
    def is_told(self) -> bool:
        """Whether the client hears what happens before the result."""
        return self.mode not in ONE_RESPONSE

    @property
    def writer(self) -> Write:
        """Writes a clip into responses."""
        if self.mode in ("frames", "raw"):
            return self._write_frames
        return into_stream(cast(BinaryIO, self))

    def _write_frames(self, clip: Clip, kind: str, emit: Emit) -> dict[str, Any]:
        if kind != "video":
            raise OptionError(f"mode={self.mode!r} gives frames; this request makes {kind}.")
        shape = clip.num_frames, clip.height, clip.width, 3
        if self.mode == "raw":
            self.frames = np.empty(shape, np.uint8)
        count = 0
        for chunk in clip.frames:
            if self.frames is not None:
                self.frames[count : count + len(chunk)] = chunk
            else:
                data = {"first": count, "frames": len(chunk)}
                self._answer.send(Event(kind="fragment", data=data), frames=chunk)
            count += len(chunk)
        return {"bytes": count * clip.height * clip.width * 3, "first_at": None}

    def write(self, data: bytes) -> int:
        """A piece of the mp4."""
        self._count += len(data)
        facts: dict[str, Any] = {"bytes": self._count}
        if self.mode == "single":
            self._pieces.append(bytes(data))
        elif self.mode == "text":
            facts["base64"] = base64.b64encode(data).decode()
            self._answer.send(Event(kind="fragment", data=facts))
        else:
            self._answer.send(Event(kind="fragment", data=facts), bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


class _Cancel(threading.Event):
    """Set when the client does not want the answer any more."""

    def __init__(self, sender: Any) -> None:
        super().__init__()
        self._sender = sender

    def is_set(self) -> bool:
        return bool(self._sender.is_cancelled())
