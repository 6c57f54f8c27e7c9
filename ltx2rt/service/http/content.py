"""A clip's file over HTTP, also while it grows: it is followed to its end, in ranges too."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from ltx2rt.service.http.answers import RefusalError
from ltx2rt.service.jobs import JobRow
from ltx2rt.service.service import Service

logger = logging.getLogger(__name__)
MEDIA_TYPES = {"video": "video/mp4", "audio": "audio/mp4", "image": "image/png"}
_PIECE = 1 << 18
_LOOK_S = 0.05  # between two looks at a file that grows
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?")


def content_answer(service: Service, job: JobRow, wanted: str | None) -> Response:
    """A finished clip, or one that is being made.

    Args:
        service: has it.
        job: of the clip.
        wanted: the request's `Range`.

    Raises:
        RefusalError: there is nothing yet, or never will be.
    """
    path, is_complete = service.content(job)
    if is_complete:
        if not path.is_file():
            raise RefusalError(410, f"the clip of {job.id} is not there any more.", "gone")
        return FileResponse(path, media_type=MEDIA_TYPES[job.kind], filename=_name(job, path))
    if job.state == "failed":
        raise RefusalError(409, f"{job.id} failed: {job.error}", job.error_kind)
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        again = service.get(job.id, job.owner)
        if again is not None and again.state == "completed":
            return content_answer(service, again, wanted)
        whole = path.with_suffix("")  # it has its name already, and its row not yet its state
        if whole.is_file():
            start, end = _range(wanted)
            handle = os.open(whole, os.O_RDONLY)
            return GrowingFile(
                handle, start, end, MEDIA_TYPES[job.kind], lambda: _state(service, job)
            )
        raise RefusalError(
            409, f"{job.id} has no content yet: {job.state}.", "not_ready"
        ) from error
    start, end = _range(wanted)
    return GrowingFile(handle, start, end, MEDIA_TYPES[job.kind], lambda: _state(service, job))


def _state(service: Service, job: JobRow) -> str:
    now = service.get(job.id, job.owner)
    return "failed" if now is None else now.state


def _name(job: JobRow, path: Path) -> str:
    return f"{job.id}{path.suffix}"


def _range(wanted: str | None) -> tuple[int | None, int | None]:
    """First and last byte; None: not named. Other ranges than one from a byte on are those of files
    whose end is known: the whole file is the answer.
    """
    match = _RANGE.fullmatch(wanted.strip()) if wanted else None
    if match is None:
        return None, None
    first, last = int(match[1]), None if match[2] is None else int(match[2])
    return (None, None) if last is not None and last < first else (first, last)


class GrowingFile(Response):
    """An open file, from a byte on, until its clip is finished; the connection breaks off where the
    clip fails.
    """

    def __init__(
        self, handle: int, start: int | None, end: int | None, kind: str, state: Callable[[], str]
    ) -> None:
        super().__init__(media_type=kind, status_code=200 if start is None else 206)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self._handle, self._at, self._end, self._state = handle, start or 0, end, state
        self._is_part = start is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it as it grows."""
        if scope["method"] == "HEAD":
            os.close(self._handle)
            await Response(headers=self.headers, status_code=self.status_code)(scope, receive, send)
            return
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await self._send(send, gone)
        finally:
            gone.cancel()
            os.close(self._handle)

    async def _send(self, send: Send, gone: asyncio.Task[None]) -> None:
        piece = await self._next(gone)
        if piece is None:
            return
        if self._is_part:
            self._describe(piece)
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        while piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = b"" if self._is_part else await self._next(gone)
        if piece is None:  # the clip failed, or nobody reads: no proper end
            logger.info("a growing clip was not sent to its end")
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _describe(self, piece: bytes) -> None:
        """Say which bytes a part is. How long the whole will be is not known, so it is what there
        is now.
        """
        if piece:
            self.headers["content-range"] = f"bytes {self._at - len(piece)}-{self._at - 1}/*"
        else:
            self.status_code = 416
            self.headers["content-range"] = f"bytes */{os.fstat(self._handle).st_size}"
        self.headers["content-length"] = str(len(piece))

    async def _next(self, gone: asyncio.Task[None]) -> bytes | None:
        """The next bytes, as soon as there are some; empty at the end, None if it will not come."""
        left = _PIECE if self._end is None else min(_PIECE, self._end + 1 - self._at)
        if left <= 0:
            return b""
        while not gone.done():
            state = self._state()  # before reading: what is written until then is read
            piece = os.pread(self._handle, left, self._at)
            if piece:
                self._at += len(piece)
                return piece
            if state == "completed":
                return b""
            if state == "failed":
                return None
            await asyncio.sleep(_LOOK_S)
        return None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
