"""Who may ask the server, how large and how slow a request may be; keys at rest."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from ltx2rt.errors import OptionError
from ltx2rt.service.http import server as http_server
from ltx2rt.service.http.guard import LOOPBACK, Guard, GuardedApp
from ltx2rt.service.http.keys import Keys, add_key


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and answers with its size and who asked."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{size} {scope['owner']}".encode()})


def ask(
    guard: Guard, headers: dict[str, str], body: Sequence[bytes | float] = (b"",), path: str = "/v1"
) -> tuple[int, bytes]:
    """Status and body; numbers in `body` are seconds of waiting."""
    sent: list[dict[str, Any]] = []
    pieces = [*body]

    async def receive() -> dict[str, Any]:
        while pieces and isinstance(pieces[0], float):
            await asyncio.sleep(pieces.pop(0))  # type: ignore[arg-type]
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(k.encode(), v.encode()) for k, v in {"host": "localhost:8000", **headers}.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
    asyncio.run(GuardedApp(_refusing(echo), guard)(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


def _refusing(app: Any) -> Any:
    """As the real app: errors of ours become answers."""
    from starlette.middleware.exceptions import ExceptionMiddleware

    from ltx2rt.service.http.answers import RefusalError
    from ltx2rt.service.http.app import _failed

    return ExceptionMiddleware(app, handlers={RefusalError: _failed, OSError: _failed})


OPEN = Guard(hosts=LOOPBACK, max_body_bytes=10, receive_s=0.2)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example:8000"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-length": "11"}, 413),
        ({"content-length": "-1"}, 413),
        ({"content-length": "9" * 5000}, 413),
    ],
)
def test_hosts_origins_sizes(headers: dict[str, str], status: int) -> None:
    assert ask(OPEN, headers)[0] == status


def test_a_body_is_counted_and_timed() -> None:
    assert ask(OPEN, {}, [b"12345", b"67890"]) == (200, b"10 ")
    assert ask(OPEN, {}, [b"12345", b"678901"])[0] == 413
    status, body = ask(OPEN, {}, [b"1", 0.05, b"2", 0.05, b"3", 0.5, b"4"])
    assert (status, json.loads(body)["error"]["code"]) == (408, "timeout")


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, other = add_key(path, "ann"), add_key(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_text()
    with pytest.raises(OptionError, match="a key called ann already"):
        add_key(path, "ann")
    guard = Guard(hosts=(), keys=Keys(path))
    assert ask(guard, {"authorization": f"Bearer {key}"}) == (200, b"0 ann")
    assert ask(guard, {"authorization": f"bearer {other}"}) == (200, b"0 bob")
    for wrong in ("", "Bearer", "Bearer ", f"Bearer {key}x", f"Basic {key}", f"Bearer {key[:-1]}"):
        assert ask(guard, {"authorization": wrong})[0] == 401
    digest = path.read_text().split()[1]
    assert ask(guard, {"authorization": f"Bearer {digest}"})[0] == 401
    assert ask(guard, {}, path="/health")[0] == 200


@pytest.mark.parametrize("text", ["", "ann", "ann 12", "ann " + "z" * 64])
def test_files_of_keys_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(OptionError, match="--add-key"):
        Keys(tmp_path / "keys")


def test_slow_heads_are_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that drips in byte by byte, on a new connection or on one that was used."""
    monkeypatch.setattr(http_server, "HEADER_S", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(
        app, port=0, http=http_server.HastyProtocol, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        for before in (b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"):
            with socket.create_connection(listener.getsockname(), timeout=10) as line:
                line.sendall(before)
                if before:
                    assert b" 204 " in line.recv(1000)
                line.sendall(b"GET / HT")
                assert line.recv(1000) == b""
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
