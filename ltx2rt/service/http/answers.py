"""Errors as answers: one status and one JSON object for each class of ours."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from ltx2rt.errors import Ltx2rtError
from ltx2rt.service.events import CANCELLED, DEADLINE, DISK_FULL, OUT_OF_MEMORY, WORKER_LOST
from ltx2rt.service.service import QueueFullError

#: why a clip was not made -> status of an answer that waited for it; others are the request's fault
FAILED = {
    CANCELLED: 409, DEADLINE: 504, WORKER_LOST: 500, OUT_OF_MEMORY: 507, DISK_FULL: 507,
    "InternalError": 500, "EngineError": 500, "DeviceLostError": 500,
}  # fmt: skip
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class JsonAnswer(Response):
    """JSON; text that is no UTF-8 (half of a pair) is escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """One document."""
        try:
            return json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return json.dumps(content).encode()


def error_answer(
    status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None
) -> JsonAnswer:
    """An error as clients of the video API know it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"message": message, "type": kind, "param": None, "code": code or None}
    return JsonAnswer({"error": body}, status, dict(headers or {}))


def answer_of(error: Exception) -> JsonAnswer:
    """What an error of ours, or of a full disk, is answered with."""
    if isinstance(error, RefusalError):
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        return error_answer(error.status, error.message, error.code, headers)
    if isinstance(error, QueueFullError):
        return error_answer(429, str(error), "queue_full", {"retry-after": "10"})
    if isinstance(error, Ltx2rtError):
        return error_answer(400, str(error), type(error).__name__)
    if isinstance(error, TimeoutError):
        return error_answer(408, "the request took too long to arrive.", "timeout")
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(error, sqlite3.Error) and "full" in str(error)):
        return error_answer(507, "the server's disk is full; nothing was kept.", DISK_FULL)
    return error_answer(500, f"the server has a fault: {type(error).__name__}.", "InternalError")
