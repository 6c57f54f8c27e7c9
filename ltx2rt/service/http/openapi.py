"""The OpenAPI document of the server: its calls, what they take, what they answer."""

from __future__ import annotations

import json
from typing import Any

from ltx2rt import __version__
from ltx2rt.service.http.videos import MAX_PAGE
from ltx2rt.service.schema import request_schema

_COMPONENTS = "#/components/schemas/"
_ERRORS = {
    400: "the request cannot be used: says everything that is wrong",
    401: "no API key of this server",
    403: "a site that may not ask",
    404: "there is no such thing",
    408: "the request took too long to arrive",
    409: "there is nothing yet, or never will be",
    410: "the clip is not there any more",
    413: "the body is too large",
    416: "the file is not that long",
    421: "this server is not called so",
    429: "as many jobs wait as may",
    507: "the disk is full",
}
#: any call may answer so
_ALWAYS = (401, 403, 408, 421)
_VIDEO = f"{_COMPONENTS}Video"


def openapi_document() -> dict[str, Any]:
    """The document, version 3.1."""
    request = request_schema()
    definitions = request.pop("$defs")
    del request["$schema"]
    schemas = {
        **definitions, "Request": request,
        "Create": _create(), "Video": _video(), "Error": _error(),
    }  # fmt: skip
    moved: dict[str, Any] = json.loads(json.dumps(schemas).replace("#/$defs/", _COMPONENTS))
    return {
        "openapi": "3.1.0",
        "info": {"title": "ltx2rt serve", "version": __version__},
        "paths": _paths(),
        "components": {"schemas": moved},
    }


def _paths() -> dict[str, Any]:
    whole = {"type": "integer"}
    video, one = _answer("the job", {"$ref": _VIDEO}), [_path_id()]
    create = {"required": True, "content": _json({"$ref": f"{_COMPONENTS}Create"})}
    found = _json_answer("what there is")
    kinds: dict[str, Any] = {"video/mp4": {}, "audio/mp4": {}, "image/png": {}}
    clip = {"description": "the clip", "content": kinds}
    metrics = {"description": "numbers", "content": {"text/plain": {}}}
    variant = {"name": "variant", "in": "query", "schema": {"const": "video"}}
    shown = {"description": "an animation", "content": {"image/webp": {}}}
    events = {"description": "what happens", "content": {"text/event-stream": {}}}
    listed = [
        {"name": "limit", "in": "query", "schema": {**whole, "minimum": 1, "maximum": MAX_PAGE}},
        {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
        {"name": "after", "in": "query", "schema": {"type": "string"}},
    ]  # fmt: skip
    return {
        "/health": {"get": _call("alive", found)},
        "/health/ready": {"get": _call("a worker answers", found, 503)},
        "/metrics": {"get": _call("Prometheus", metrics)},
        "/openapi.json": {"get": _call("this document", found)},
        "/v1/schema": {"get": _call("the JSON schema of `request`", found)},
        "/v1/models": {"get": _call("the bundle, its pipelines and limits", found)},
        "/v1/models/{id}": {"parameters": one, "get": _call("a model", found, 404)},
        "/v1/loras": {"get": _call("LoRAs by name", found)},
        "/v1/videos": {
            "get": {**_call("jobs", found, 400, 404), "parameters": listed},
            "post": {
                **_call("a job; answers at once", video, 400, 404, 413, 429, 507),
                "requestBody": create,
            },
        },
        "/v1/videos/sync": {
            "post": {
                **_call("a job; answers with its clip", clip, 400, 404, 409, 413, 429, 504, 507),
                "requestBody": create,
            },
        },
        "/v1/videos/{id}": {
            "parameters": one,
            "get": _call("a job", video, 404),
            "delete": _call("end and forget a job", found, 404),
        },
        "/v1/videos/{id}/content": {
            "parameters": one,
            "get": {
                **_call("its clip, also while it grows", clip, 400, 404, 409, 410, 416),
                "parameters": [variant],
            },
        },
        "/v1/videos/{id}/preview": {
            "parameters": one,
            "get": _call("what it looked like after the last step", shown, 404, 409),
        },
        "/v1/videos/{id}/events": {"parameters": one, "get": _call("its events", events, 404)},
        "/v1/videos/{id}/cancel": {"parameters": one, "post": _call("end a job", video, 404)},
    }  # fmt: skip


def _call(summary: str, answer: dict[str, Any], *failures: int) -> dict[str, Any]:
    error = _json({"$ref": f"{_COMPONENTS}Error"})
    answers: dict[str, Any] = {"200": answer}
    for status in sorted({*failures, *_ALWAYS}):
        told = _ERRORS.get(status, "the server cannot do it now")
        plain = status == 503 and summary == "a worker answers"
        answers[str(status)] = {"description": told, "content": _json({}) if plain else error}
    return {"summary": summary, "responses": answers}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": _json(schema)}


def _json_answer(description: str) -> dict[str, Any]:
    return _answer(description, {"type": "object"})


def _path_id() -> dict[str, Any]:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    }


def _create() -> dict[str, Any]:
    """The fields of the video API; all of ours are in `request`."""
    whole, number, text = {"type": "integer"}, {"type": "number"}, {"type": "string"}
    lora = {
        "type": "object", "required": ["name"],
        "properties": {"name": text, "strength": number},
    }  # fmt: skip
    return {
        "type": "object",
        "properties": {
            "prompt": text, "negative_prompt": text, "model": text, "pipeline": text,
            "size": {"type": "string", "pattern": "^[0-9]+x[0-9]+$"},
            "width": whole, "height": whole, "num_frames": whole, "seconds": number,
            "fps": number, "seed": whole, "num_inference_steps": whole, "guidance_scale": number,
            "priority": whole, "timeout_s": number, "preview": whole, "input_reference": text,
            "loras": {"type": "array", "items": lora},
            "request": {"$ref": f"{_COMPONENTS}Request"},
        },
    }  # fmt: skip


def _video() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["id", "object", "model", "status", "progress", "created_at", "ltx2rt"],
        "properties": {
            "id": text, "object": {"const": "video"}, "model": text, "prompt": text,
            "status": {"enum": ["queued", "in_progress", "completed", "failed"]},
            "progress": {"type": "integer", "minimum": 0, "maximum": 100},
            "size": text, "seconds": text, "created_at": {"type": "integer"},
            "error": {"type": ["object", "null"]}, "ltx2rt": {"type": "object"},
        },
    }  # fmt: skip


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": {"type": "string", "minLength": 1}, "type": text,
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    }  # fmt: skip
