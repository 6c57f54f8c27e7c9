"""What every request passes before anything looks at it: host, origin, key, size, time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltx2rt.service.http.answers import RefusalError, answer_of
from ltx2rt.service.http.keys import Keys

logger = logging.getLogger("ltx2rt.service.access")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
_DIGITS = 16  # of a length that can be meant
#: how long and how much of a refused body is still taken and dropped
_LINGER_S, _LINGER_BYTES = 5.0, 64_000_000
#: answered without a key
OPEN = ("/health", "/health/ready", "/", "/page.js", "/page.css")


class SlowReaderError(Exception):
    """A client takes its answer too slowly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Rules of every request.

    Attributes:
        hosts: names under which the server may be asked; a page of another site that resolves its
            own name to this machine is refused. Empty: any.
        origins: of other sites whose pages may ask.
        keys: None: nobody needs one.
        max_body_bytes: of a request.
        receive_s: seconds that a whole request may take to arrive.
        send_s: seconds that a reader may take for a piece.
    """

    hosts: Sequence[str]
    origins: Sequence[str] = ()
    keys: Keys | None = None
    max_body_bytes: int = 400_000_000
    receive_s: float = 120.0
    send_s: float = 60.0

    def owner(self, scope: Scope) -> str:
        """Who asks; refuses those who may not.

        Raises:
            RefusalError: says why.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            raise RefusalError(421, f"this server is not called {host[:80]!r}.", "unknown_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and urlsplit(origin).netloc != host:
            raise RefusalError(403, f"pages of {origin[:80]!r} may not ask this server.", "origin")
        length = headers.get("content-length", "0")
        is_number = length.isascii() and length.isdigit() and len(length) < _DIGITS
        if not is_number or int(length) > self.max_body_bytes:
            raise too_large(self.max_body_bytes)
        if self.keys is None or scope["path"] in OPEN:
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        found = self.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise RefusalError(
                401, "an API key is needed: Authorization: Bearer KEY.", "invalid_api_key"
            )
        return found


def too_large(most: int) -> RefusalError:
    """The answer to a body that is too large."""
    return RefusalError(413, f"a request of more than {most} bytes is not allowed.", "too_large")


def _lingering(scope: Scope, receive: Receive, send: Send) -> Send:
    """A `send` that keeps the connection for a while after the answer and drops what still arrives.

    A client that writes its whole body before it reads would otherwise find the connection reset
    (a broken pipe) where the reason for the refusal stands.
    """

    async def drop_the_rest() -> None:
        count, more = 0, True
        while more and count < _LINGER_BYTES:
            message = await receive()
            count += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    async def sent(message: Message) -> None:
        if message["type"] != "http.response.body":
            return await send(message)
        await send({**message, "more_body": True})
        if "expect" not in Headers(scope=scope):  # such a client waits for leave to send its body
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(drop_the_rest(), _LINGER_S)
        await send({"type": "http.response.body", "body": b""})

    return sent


def _name(host: str) -> str:
    """A host without its port."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host


class GuardedApp:
    """An app behind a guard; it logs every answer as one line."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id, began = secrets.token_hex(8), time.monotonic()
        started: list[int] = []

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message["status"])
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            try:
                await asyncio.wait_for(send(message), self._guard.send_s)
            except TimeoutError as error:
                raise SlowReaderError from error

        try:
            scope["owner"], scope["request_id"] = self._guard.owner(scope), request_id
            await self._app(scope, self._limited(receive), sent)
        except SlowReaderError:  # the answer cannot be taken back: the connection ends
            logger.warning("cut off: a slow reader", extra={"request_id": request_id})
        except RefusalError as error:
            answer = answer_of(error)
            answer.headers["connection"] = "close"
            await answer(scope, receive, _lingering(scope, receive, sent))
        finally:
            logger.info(
                "%s %s",
                scope["method"],
                scope["path"],
                extra={
                    "request_id": request_id,
                    "status": started[0] if started else 0,
                    "seconds": round(time.monotonic() - began, 4),
                    "owner": scope.get("owner", ""),
                },
            )

    def _limited(self, receive: Receive) -> Receive:
        count = 0
        until = asyncio.get_running_loop().time() + self._guard.receive_s
        is_whole = False

        async def limited() -> Message:
            nonlocal count, is_whole
            if is_whole:  # only the end of the connection can come
                return await receive()
            async with asyncio.timeout_at(until):
                message = await receive()
            count += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if count > self._guard.max_body_bytes:
                raise too_large(self._guard.max_body_bytes)
            return message

        return limited
