"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ltx2rt import __version__
from ltx2rt.errors import Ltx2rtError
from ltx2rt.service.events import Event
from ltx2rt.service.http.answers import JsonAnswer, RefusalError, answer_of, error_answer
from ltx2rt.service.http.guard import Guard, GuardedApp
from ltx2rt.service.http.openapi import openapi_document
from ltx2rt.service.http.videos import Videos
from ltx2rt.service.http.watchers import Watchers
from ltx2rt.service.jobs import JobRow
from ltx2rt.service.metrics import Metrics
from ltx2rt.service.models import Model
from ltx2rt.service.schema import request_schema
from ltx2rt.service.service import Service

logger = logging.getLogger(__name__)
#: what pages of this server may do: nothing from elsewhere, no frames around them
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
_PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
         "/page.css": ("page.css", "text/css")}  # fmt: skip


def make_app(service: Service, guard: Guard) -> ASGIApp:
    """The server of a service that was not started yet.

    Args:
        service: makes the clips; started and stopped by its owner.
        guard: what every request passes.
    """
    uploads = service.settings.data_dir / "uploads"
    shutil.rmtree(uploads, ignore_errors=True)  # those of an earlier run
    uploads.mkdir()
    metrics = Metrics(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watchers = Watchers(asyncio.get_running_loop())
        videos = Videos(service, watchers, uploads)

        def happened(job: JobRow, event: Event) -> None:
            metrics.note(job, event)
            watchers.happened(job, event)

        service.listener = happened
        app.router.routes[:] = _routes(service, videos, metrics)
        yield

    app = Starlette(
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _not_here,
            **dict.fromkeys((RefusalError, Ltx2rtError, OSError, sqlite3.Error), _failed),
            Exception: _failed,
        },
    )
    guarded: ASGIApp = GuardedApp(app, guard)
    if guard.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=guard.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "range"],
            expose_headers=["content-range", "x-request-id", "x-video-id"],
        )
    return guarded


def _routes(service: Service, videos: Videos, metrics: Metrics) -> list[Route]:
    async def health(_: Request) -> Response:
        return JsonAnswer({"status": "ok", "version": __version__})

    async def ready(_: Request) -> Response:
        answers = await run_in_threadpool(service.answers)
        return JsonAnswer({"status": "ready" if answers else "starting"}, 200 if answers else 503)

    async def metrics_text(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(_: Request) -> Response:
        data = [_model(service, one) for one in service.models.values()]
        return JsonAnswer({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        found = service.models.get(request.path_params["id"])
        if found is None:
            return error_answer(404, "there is no such model.", "model_not_found")
        return JsonAnswer(_model(service, found))

    async def loras(_: Request) -> Response:
        names = await run_in_threadpool(service.settings.allowed.loras)
        return JsonAnswer({"object": "list", "data": [{"id": n, "object": "lora"} for n in names]})

    schema = request_schema()

    async def schema_text(_: Request) -> Response:
        return JsonAnswer(schema)

    document = openapi_document()

    async def openapi(_: Request) -> Response:
        return JsonAnswer(document)

    one = "/v1/videos/{id}"
    return [
        *(Route(path, _page(*file)) for path, file in _PAGE.items()),
        Route("/health", health),
        Route("/health/ready", ready),
        Route("/metrics", metrics_text),
        Route("/v1/models", models),
        Route("/v1/models/{id}", model),
        Route("/v1/loras", loras),
        Route("/v1/schema", schema_text),
        Route("/openapi.json", openapi),
        Route("/v1/videos", videos.list),
        Route("/v1/videos", videos.create, methods=["POST"]),
        Route("/v1/videos/sync", videos.sync, methods=["POST"]),
        Route(one, videos.retrieve),
        Route(one, videos.delete, methods=["DELETE"]),
        Route(f"{one}/content", videos.content),
        Route(f"{one}/preview", videos.preview),
        Route(f"{one}/events", videos.events),
        Route(f"{one}/cancel", videos.cancel, methods=["POST"]),
    ]


def _model(service: Service, model: Model) -> dict[str, Any]:
    limits = service.settings.limits
    return {
        "id": model.name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "ltx2rt",
        "bundle": model.bundle.bundle_id,
        "pipelines": model.pipelines(),
        "previews": model.previews(),
        "limits": {name: getattr(limits, name) for name in limits.__slots__},
    }


def _page(name: str, kind: str) -> Callable[[Request], Any]:
    folder = importlib.resources.files("ltx2rt.service.http").joinpath("page")
    data = folder.joinpath(name).read_bytes()

    async def page(_: Request) -> Response:
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        return Response(data, media_type=kind, headers=headers)

    return page


async def _not_here(_: Request, error: Exception) -> Response:
    """What starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    return error_answer(error.status_code, str(error.detail), headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    answer = answer_of(error)
    if answer.status_code == 500:
        logger.error("a fault of the server", exc_info=error)
    return answer
