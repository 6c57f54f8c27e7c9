"""The JSON schema of a request, made from the dataclasses that it is read into."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union

from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.docstrings import attribute_texts
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from ltx2rt.plain_data import to_plain

#: of requests to a service; goes up where old ones cannot be read any more
REQUEST_SCHEMA = 1
#: fields that a service has no use for, and why
REFUSED = {
    "hdr": "clips of high dynamic range are folders of files: make them with `ltx2rt generate`",
    "embeddings": "a service encodes the prompt itself",
    "latents": "a service keeps no latents: make them and go on from them with `ltx2rt generate`",
}
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def request_schema() -> dict[str, Any]:
    """The schema of what a service takes: `pipeline`, `config`, `guidance`, `inputs`, `preview`."""
    definitions: dict[str, Any] = {}
    inputs = {name: catalog_class(name).Inputs for name in PIPELINES}
    kinds = [_schema(kind, definitions) for kind in dict.fromkeys(inputs.values()) if kind]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A clip to be made by ltx2rt",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "schema": {"const": REQUEST_SCHEMA},
            "pipeline": {"enum": [*PIPELINES], "default": "distilled"},
            "config": _schema(GenerationConfig, definitions),
            "guidance": {"anyOf": [_schema(GuidanceConfig, definitions), {"type": "null"}]},
            "inputs": {"anyOf": [*kinds, {"type": "null"}]},
            "preview": {
                "type": "integer", "minimum": 0, "default": 0,
                "description": "steps between two previews; 0: none",
            },
        },
        "$defs": definitions,
    }  # fmt: skip


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(a, definitions) for a in arguments]}
    if origin is Literal:
        return {"enum": [*arguments]}
    if origin is tuple:
        if arguments[1:] == (...,):
            return {"type": "array", "items": _schema(arguments[0], definitions)}
        items = [_schema(a, definitions) for a in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _reference(kind, definitions)
    if kind is Path:
        text = "data:TYPE;base64,DATA, upload:NAME, an allowed URL, or a name in the media folder"
        return {"type": "string", "minLength": 1, "description": text}
    return {"type": _SCALARS[kind]} if kind in _SCALARS else {}


def _reference(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # it may name itself
        definitions[kind.__name__] = _object(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _object(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    hints, texts = typing.get_type_hints(kind), attribute_texts(kind)
    properties: dict[str, Any] = {}
    required = []
    for field in dataclasses.fields(kind):
        if kind is GenerationConfig and field.name in REFUSED:
            continue
        entry = _schema(hints[field.name], definitions)
        if kind is Lora and field.name == "path":
            entry["description"] = "the name of a LoRA of the server (/v1/loras)"
        elif field.name in texts:
            entry.setdefault("description", texts[field.name])
        if field.default is not dataclasses.MISSING:
            entry["default"] = to_plain(field.default)
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = entry
    found: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
    return {**found, "required": required} if required else found
