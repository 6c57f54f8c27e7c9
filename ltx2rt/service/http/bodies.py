"""The body of a request: JSON, or a form with files, read within the limits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from ltx2rt.errors import OptionError
from ltx2rt.service.http.answers import RefusalError
from ltx2rt.service.http.forms import Asked, parse_body, read_fields, read_form
from ltx2rt.service.http.guard import too_large
from ltx2rt.service.limits import Limits
from ltx2rt.service.sources import SUFFIXES, suffix_of

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_MAX_FIELDS = 64
_MAX_BODY = 64_000_000  # of JSON: larger files come in forms, which go to the disk
_MAX_JSON = 16_000_000  # of a field; files are read in pieces


@asynccontextmanager
async def asked_in(request: Request, limits: Limits, folder: Path) -> AsyncIterator[Asked]:
    """What a request asks for; its files are gone afterwards, unless they were moved.

    Raises:
        OptionError, RefusalError: it cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind not in _FORMS:
            data = parse_body(await _read(request))
            if not isinstance(data, dict):
                raise OptionError("the body is not an object")
            yield read_fields(data)
            return
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield await _form(request, limits, Path(place))
    except ClientDisconnect as error:
        raise RefusalError(400, "the request broke off.") from error
    except HTTPException as error:  # what starlette says of a bad form
        raise RefusalError(error.status_code, str(error.detail)) from error


async def _read(request: Request) -> bytes:
    """A body that is held in memory."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > _MAX_BODY:
            raise too_large(_MAX_BODY)
        pieces.append(piece)
    return b"".join(pieces)


async def _form(request: Request, limits: Limits, place: Path) -> Asked:
    texts: dict[str, str] = {}
    files: dict[str, Path] = {}
    async with request.form(
        max_files=limits.max_media, max_fields=_MAX_FIELDS, max_part_size=_MAX_JSON
    ) as form:
        for name, value in form.multi_items():
            if name in texts or name in files:
                raise OptionError(f"{name[:40]!r} is given twice")
            if isinstance(value, UploadFile):
                files[name] = place / f"{len(files)}{_suffix(value)}"
                if (value.size or 0) > limits.max_media_bytes:
                    raise OptionError(
                        f"{name[:40]!r} has more than {limits.max_media_bytes} bytes, which this "
                        "server does not allow"
                    )
                with files[name].open("wb") as file:
                    shutil.copyfileobj(value.file, file)
            else:
                texts[name] = value
    return read_form(texts, files)


def _suffix(upload: UploadFile) -> str:
    """How an upload's file ends: as its name does, where that is known, else by its type."""
    found = Path(upload.filename or "").suffix.lower()
    if found in {*SUFFIXES.values(), ".jpeg"}:
        return found
    return suffix_of((upload.content_type or "").partition(";")[0])
