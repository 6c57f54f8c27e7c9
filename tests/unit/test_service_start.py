"""A server whose app cannot start ends, and says so."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from starlette.types import Receive, Scope, Send

from ltx2rt.errors import InternalError
from ltx2rt.service.http.server import Address, serve


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no room"})


def test_an_app_that_cannot_start() -> None:
    service = Mock()
    with pytest.raises(InternalError, match="could not start"):
        serve(broken, service, Address(host="127.0.0.1", port=0, grace_s=0))
    service.start.assert_called_once()
    service.stop.assert_called_once()
