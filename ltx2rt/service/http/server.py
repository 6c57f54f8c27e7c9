"""Runs the app: sockets, signals, and clients that are too slow with their headers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ltx2rt.errors import InternalError, OptionError
from ltx2rt.service.service import Service

logger = logging.getLogger(__name__)
HEADER_S = 10.0  # seconds that the head of a request may take to arrive
KEEP_ALIVE_S = 20
MAX_CONNECTIONS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen, and how long open work may take at the end.

    Attributes:
        host, port: where; port 0 takes a free one.
        grace_s: seconds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grace_s: float = 30.0


class HastyProtocol(H11Protocol):
    """HTTP whose request heads must arrive in time; uvicorn itself waits for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something arrived."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(HEADER_S, self._close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


class Server(uvicorn.Server):
    """A server that tells its service when it is asked to end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server, which then returns: uvicorn would send them once more,
        to itself, before the service was stopped.
        """
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM: clips that are being made are finished, no others are begun."""
        # on a thread: this one may hold the lock of the queue
        threading.Thread(target=self._service.close_queue, daemon=True).start()
        super().handle_exit(sig, frame)


def serve(app: ASGIApp, service: Service, address: Address) -> None:
    """Serve until a signal ends it; the service is started and stopped.

    Raises:
        OptionError: the address cannot be used.
        InternalError: the app could not start.
    """
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http=HastyProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(address.grace_s),
        limit_concurrency=MAX_CONNECTIONS,
        lifespan="on",
    )
    try:
        socket = config.bind_socket()
    except (OSError, SystemExit) as error:  # uvicorn ends the process itself
        reason = error if isinstance(error, OSError) else error.__context__
        raise OptionError(
            f"cannot listen at {address.host}:{address.port}: "
            f"{getattr(reason, 'strerror', None) or reason}; choose another --port or --host."
        ) from error
    port = socket.getsockname()[1]
    logger.info("listening at http://%s:%d", address.host, port, extra={"kind": "listening"})
    service.start()
    try:
        Server(config, service).run(sockets=[socket])
    except SystemExit as error:  # uvicorn's way to say that the app did not start
        raise InternalError("the server could not start: its log says why.") from error
    finally:
        socket.close()
        service.stop(address.grace_s)
