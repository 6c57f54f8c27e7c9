"""`/v1/videos`: create, retrieve, list, content, events, delete; and one call that waits."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ltx2rt.service.http.answers import FAILED, JsonAnswer, RefusalError, error_answer
from ltx2rt.service.http.bodies import asked_in
from ltx2rt.service.http.content import content_answer
from ltx2rt.service.http.forms import Asked
from ltx2rt.service.http.watchers import Watchers
from ltx2rt.service.jobs import JobRow
from ltx2rt.service.requests import DEFAULT_PIPELINE
from ltx2rt.service.service import Service

MAX_PAGE = 100
_HEARTBEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class Videos:
    """The calls of the video API.

    Attributes:
        service: makes the clips.
        watchers: of its events.
        uploads: where files of requests lie until they are accepted.
    """

    service: Service
    watchers: Watchers
    uploads: Path

    async def create(self, request: Request) -> Response:
        """`POST /v1/videos`."""
        return JsonAnswer(self.video(await self._submit(request)))

    async def sync(self, request: Request) -> Response:
        """`POST /v1/videos/sync`: the clip itself; who hangs up cancels it."""
        job = await self._submit(request)
        gone = asyncio.create_task(_until_gone(request))
        with self.watchers.watching(job.id) as events:
            now = self.service.get(job.id, job.owner) or job
            while not now.is_finished:
                waited = asyncio.create_task(events.get())
                await asyncio.wait({waited, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    waited.cancel()
                    await run_in_threadpool(self.service.cancel, job)
                    return error_answer(499, "nobody waits any more.")
                now, _ = await waited
        gone.cancel()
        if now.state == "failed":
            return error_answer(FAILED.get(now.error_kind, 400), now.error, now.error_kind)
        answer = content_answer(self.service, now, None)
        answer.headers["x-video-id"] = job.id
        answer.headers["x-inference-time-s"] = f"{now.result['timings_s']['total']:.3f}"
        return answer

    async def _submit(self, request: Request) -> JobRow:
        settings, models = self.service.settings, self.service.models
        async with asked_in(request, settings.limits, self.uploads) as asked:
            if asked.model and asked.model not in models:
                raise RefusalError(
                    404,
                    f"there is no model {asked.model[:80]!r}; this server has "
                    f"{', '.join(map(repr, models))}.",
                    "model_not_found",
                )
            return await run_in_threadpool(self._accept, asked, request.scope["owner"])

    def _accept(self, asked: Asked, owner: str) -> JobRow:
        models = self.service.models
        model = asked.model or models.default
        if asked.guidance_scale is not None:
            guidance = asked.data["guidance"] = dict(asked.data.get("guidance") or {})
            pipeline = asked.data.get("pipeline", DEFAULT_PIPELINE)
            guidance["video"] = models[model].guider(pipeline, asked.guidance_scale)
        return self.service.submit(
            asked.data,
            owner=owner,
            model=model,
            uploads=asked.uploads,
            priority=asked.priority,
            timeout_s=asked.timeout_s,
            asked=asked.shown,
        )

    async def retrieve(self, request: Request) -> Response:
        """`GET /v1/videos/{id}`."""
        return JsonAnswer(self.video(self._job(request)))

    async def list(self, request: Request) -> Response:
        """`GET /v1/videos?after=&limit=&order=`."""
        query = request.query_params
        limit, order = query.get("limit", "20"), query.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_PAGE):
            raise RefusalError(400, f"limit={limit[:40]!r} is not in [1, {MAX_PAGE}].")
        if order not in ("asc", "desc"):
            raise RefusalError(400, f"order={order[:40]!r} is not asc or desc.")
        owner, after = request.scope["owner"], None
        if "after" in query:
            after = self.service.get(query["after"], owner)
            if after is None:
                raise RefusalError(404, f"there is no video {query['after'][:80]!r}.")
        count = int(limit)
        rows = self.service.store.page(owner, after, count + 1, newest_first=order == "desc")
        data = [self.video(row) for row in rows[:count]]
        return JsonAnswer(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(rows) > count,
            }
        )

    async def content(self, request: Request) -> Response:
        """`GET /v1/videos/{id}/content`."""
        variant = request.query_params.get("variant", "video")
        if variant != "video":
            raise RefusalError(400, f"variant={variant[:40]!r} is not made here; there is video.")
        return content_answer(self.service, self._job(request), request.headers.get("range"))

    async def preview(self, request: Request) -> Response:
        """`GET /v1/videos/{id}/preview`: what the clip looked like after the last step."""
        job = self._job(request)
        found = self.service.live(job.id).preview
        if found is None:
            raise RefusalError(
                409, f"{job.id} has no preview: {job.state}; `preview` asks for some.", "not_ready"
            )
        headers = {"cache-control": "no-store"}
        return Response(base64.b64decode(found["webp"]), media_type="image/webp", headers=headers)

    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/videos/{id}`: also ends it."""
        job = self._job(request)
        await run_in_threadpool(self.service.remove, job)
        return JsonAnswer({"id": job.id, "object": "video.deleted", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """`POST /v1/videos/{id}/cancel`: ends it and keeps its row."""
        job = self._job(request)
        if not job.is_finished:
            await run_in_threadpool(self.service.cancel, job)
        return JsonAnswer(self.video(self.service.get(job.id, job.owner) or job))

    async def events(self, request: Request) -> Response:
        """`GET /v1/videos/{id}/events`: what happens, as server-sent events."""
        job = self._job(request)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return StreamingResponse(
            self._events(job), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def _events(self, job: JobRow) -> AsyncIterator[str]:
        with self.watchers.watching(job.id) as events:
            now = self.service.get(job.id, job.owner) or job
            yield _sse("state", self.video(now))
            while not now.is_finished:
                try:
                    now, event = await asyncio.wait_for(events.get(), _HEARTBEAT_S)
                except TimeoutError:
                    yield ": waiting\n\n"
                    if self.service.is_stopping and now.state == "queued":
                        return
                    continue
                data = event.plain
                if event.is_final:
                    data = self.video(now)
                yield _sse(event.kind, data)

    def _job(self, request: Request) -> JobRow:
        name = request.path_params["id"]
        found = self.service.get(name, request.scope["owner"])
        if found is None:
            raise RefusalError(404, f"there is no video {name[:80]!r}.", "not_found")
        return found

    def video(self, job: JobRow) -> dict[str, Any]:
        """A job as the video API shows it, with more in `ltx2rt`."""
        live, config = self.service.live(job.id), job.order["config"]
        done = 100 if job.state == "completed" else live.progress
        made, frames, rate = job.result, config["num_frames"], config["frame_rate"]
        if made:
            frames, rate = made["num_frames"], made["frame_rate"]
        age = self.service.settings.max_age_h * 3600
        more: dict[str, Any] = {
            "pipeline": job.order["pipeline"],
            "kind": job.kind,
            "seed": config["seed"],
            "position": self.service.position(job.id) if job.state == "queued" else None,
            "stage": live.stage or None,
            "eta_s": live.eta_s,
            "clip_eta_s": live.clip_eta_s,
            "bytes": made.get("bytes", live.bytes),
            "preview": _place(live.preview),
            "num_frames": frames if isinstance(frames, int) else None,
            "frame_rate": rate,
        }
        if made:
            more |= {"timings_s": made["timings_s"], "record": self._record(job)}
        return {
            "id": job.id,
            "object": "video",
            "model": job.model or self.service.models.default,
            "status": job.state,
            "progress": done,
            "prompt": config["prompt"],
            "size": f"{made.get('width', config['width'])}x{made.get('height', config['height'])}",
            "seconds": f"{frames / rate:g}" if isinstance(frames, int) else "0",
            "created_at": int(job.created),
            "completed_at": int(job.finished) if job.state == "completed" else None,
            "expires_at": int(job.finished + age) if job.is_finished else None,
            "error": {"code": job.error_kind, "message": job.error} if job.error_kind else None,
            "remixed_from_video_id": None,
            "ltx2rt": more,
        }

    def _record(self, job: JobRow) -> dict[str, Any]:
        """What a clip was made from; files are named as clients know them, not as they lie here."""
        text = job.result["record"]
        for folder in (self.service.folder_of(job.id), self.service.settings.allowed.lora_dir):
            if folder is not None:
                inside = json.dumps(f"{folder.absolute()}/", ensure_ascii=False)[1:-1]
                text = text.replace(inside, "")
        record: dict[str, Any] = json.loads(text)
        return record


def _place(preview: Mapping[str, Any] | None) -> str | None:
    """Where a preview was taken: it tells one from the next."""
    return None if preview is None else f"{preview['stage']} {preview['step']}/{preview['total']}"


def _sse(kind: str, data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, default=str)}\n\n"


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
