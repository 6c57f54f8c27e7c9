"""Clients of both servers: ask, hear what happens, get the bytes of a clip as they are made."""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import mimetypes
import queue
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ltx2rt.errors import Ltx2rtError, MediaError, OptionError, UnsupportedError
from ltx2rt.install import install_hint

Told = Callable[[dict[str, Any]], None]
_PIECE = 1 << 16
#: seconds without a word from a server; it says at least that it waits
_SILENCE_S = 120.0


class ServerError(Ltx2rtError):
    """A server refused a request, failed to make its clip, or could not be reached."""


class Client(Protocol):
    """One kind of server."""

    def generate(self, request: Mapping[str, Any], on_event: Told) -> Iterator[bytes]:
        """Have a clip made.

        Args:
            request: as `schema.request_schema` says.
            on_event: takes `queued`, `progress`, `preview` and `result` events.

        Yields:
            The bytes of its file, as they are made. Leaving early cancels it.

        Raises:
            ServerError: says what the server says.
        """


def data_url(path: Path) -> str:
    """A file as a request carries it.

    Raises:
        MediaError: it cannot be read.
    """
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}.") from error


class HttpClient:
    """Of `ltx2rt serve`.

    Args:
        url: `http://127.0.0.1:8000`.
        key: an API key, or None.
        model: the name of one of the server's bundles; None: its first.
    """

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(f"{url!r} is not the address of a server: http://HOST:PORT")
        self._parts, self._model = parts, model
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    def generate(self, request: Mapping[str, Any], on_event: Told) -> Iterator[bytes]:
        """See `Client`."""
        body = json.dumps({"request": request, "model": self._model}).encode()
        with self._answer("POST", "/v1/videos", body) as answer:
            job = json.loads(answer.read())["id"]
        is_over = False
        events: queue.Queue[dict[str, Any]] = queue.Queue()
        listener = threading.Thread(target=self._listen, args=(job, events, on_event), daemon=True)
        listener.start()
        try:
            while (event := events.get())["event"] not in ("fragment", "result", "error"):
                pass
            if event["event"] != "error":
                yield from self._content(job)
                while event["event"] not in ("result", "error"):
                    event = events.get()
            if (raised := event.get("raised")) is not None:
                raise raised
            is_over = True
            if event["event"] == "error":
                raise ServerError(event["message"])
        finally:
            if not is_over:
                with self._answer("POST", f"/v1/videos/{job}/cancel"):
                    pass

    def _content(self, job: str) -> Iterator[bytes]:
        with self._answer("GET", f"/v1/videos/{job}/content") as answer:
            try:
                while piece := answer.read1(_PIECE):
                    yield piece
            except http.client.IncompleteRead:
                return  # the clip failed: its last event says why

    def _listen(self, job: str, events: queue.Queue[dict[str, Any]], on_event: Told) -> None:
        """The job's events, until the last one."""
        try:
            with self._answer("GET", f"/v1/videos/{job}/events") as answer:
                for event in _sse(answer):
                    on_event(event)
                    events.put(event)
                    if event["event"] in ("result", "error"):
                        return
            events.put({"event": "error", "message": "the server ended before the clip was made."})
        except ServerError as error:
            events.put({"event": "error", "message": str(error)})
        except Ltx2rtError as error:  # of `on_event`, such as a full disk
            events.put({"event": "error", "raised": error})

    @contextmanager
    def _answer(
        self, method: str, path: str, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=_SILENCE_S)
        try:
            try:
                connection.request(method, self._parts.path.rstrip("/") + path, body, self._headers)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                where = f"{self._parts.scheme}://{self._parts.netloc}"
                raise ServerError(
                    f"cannot reach {where}: {error or type(error).__name__}; start a server with "
                    "`ltx2rt serve BUNDLE --data DIR`, or name another with --url."
                ) from error
            if answer.status >= 400:
                raise ServerError(_message(answer))
            try:
                yield answer
            except OSError as error:
                raise ServerError(f"the server broke off: {error}.") from error
        finally:
            connection.close()


def _message(answer: http.client.HTTPResponse) -> str:
    text = answer.read(100_000).decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status}: {text[:200]}"


def _sse(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Server-sent events as those of `events.Event`; the first says how the job is now."""
    kind = ""
    for raw in answer:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            if kind == "state":
                kind = {"completed": "result", "failed": "error"}.get(data["status"], "state")
                if data["status"] == "in_progress" and data["ltx2rt"]["bytes"]:
                    kind = "fragment"
            if kind == "error":
                data = {"message": data["error"]["message"]}
            yield {"event": kind, **data}


class TritonClient:
    """Of a model repository that `ltx2rt triton` made.

    Args:
        address: of gRPC, `localhost:8001`.
        priority: 1 to 3.

    Raises:
        UnsupportedError: `tritonclient` is not installed.
    """

    def __init__(self, address: str, priority: int = 2) -> None:
        try:
            self._grpc: Any = importlib.import_module("tritonclient.grpc")
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                f"--triton needs the package {error.name}, which is part of the triton-client "
                f"extra: {install_hint('triton-client')}"
            ) from error
        self._address, self._priority = address, priority

    def generate(self, request: Mapping[str, Any], on_event: Told) -> Iterator[bytes]:
        """See `Client`."""
        failures = importlib.import_module("tritonclient.utils").InferenceServerException
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        tensor = self._grpc.InferInput("REQUEST", [1, 1], "BYTES")
        text = json.dumps(request, ensure_ascii=False).encode()
        tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
        client = self._grpc.InferenceServerClient(self._address)
        is_over = False
        try:
            client.is_server_live()  # raises where there is none
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer(
                "ltx2_generate", [tensor], priority=self._priority,
                enable_empty_final_response=True,
            )  # fmt: skip
            while not is_over:
                result, error = answers.get()
                if error is not None:
                    is_over = True
                    raise ServerError(str(error.message()))
                is_over = result.get_response().parameters["triton_final_response"].bool_param
                if not is_over:
                    on_event(json.loads(result.as_numpy("EVENT").item()))
                    yield result.as_numpy("CHUNK").tobytes()
        except failures as error:
            raise ServerError(f"cannot ask {self._address}: {error}") from error
        finally:
            client.stop_stream(cancel_requests=not is_over)
            client.close()
