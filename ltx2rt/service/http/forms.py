"""The fields of the video API, as its clients send them, to a request of ours.

Form and JSON bodies carry the same names. What would change the clip and is not understood is
refused, never left out.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltx2rt.config import GenerationConfig
from ltx2rt.errors import OptionError
from ltx2rt.plain_data import parse_json, unknown_name
from ltx2rt.service.requests import PARTS
from ltx2rt.service.sources import UPLOAD

#: frames that belong to a latent frame
_STEP = 8
#: what clients send that changes no clip
_IGNORED = {"user", "response_format", "n"}
#: names that other servers use -> ours
_ALIASES = {
    "fps": "frame_rate",
    "negative": "negative_prompt",
    "lora": "loras",
    "timeout": "timeout_s",
}
_NUMBERS: dict[str, Callable[[str], Any]] = {
    "width": int, "height": int, "num_frames": int, "seed": int, "frame_rate": float,
    "seconds": float, "num_inference_steps": int, "guidance_scale": float, "priority": int,
    "timeout_s": float, "preview": int,
}  # fmt: skip
_JSON = {"loras", "request", "input_reference", "image_reference", *PARTS} - {"pipeline", "preview"}
KNOWN = (
    "prompt", "model", "size", "negative_prompt", "input_reference", "image_reference", "pipeline",
    "loras", "request", *_NUMBERS, "config", "guidance", "inputs", "schema",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Asked:
    """What a client asked for.

    Attributes:
        data: for `Service.submit`.
        uploads: files that came with it.
        model: what it wants to be made by; None: whatever there is.
        priority, timeout_s: see `JobRow`.
        shown: what it called things, for the answers.
        guidance_scale: of the picture, on top of the pipeline's own guidance; None: not named.
    """

    data: dict[str, Any]
    uploads: dict[str, Path] = field(default_factory=dict)
    model: str | None = None
    priority: int = 0
    timeout_s: float = 0.0
    shown: dict[str, Any] = field(default_factory=dict)
    guidance_scale: float | None = None


def read_form(given: Mapping[str, Any], uploads: Mapping[str, Path]) -> Asked:
    """What a form says: texts, of which some stand for numbers or JSON, and files.

    Raises:
        OptionError: lists what is wrong.
    """
    values: dict[str, Any] = {}
    problems = []
    for name, text in given.items():
        own = _ALIASES.get(name, name)
        try:
            if own in _NUMBERS:
                values[own] = _NUMBERS[own](text)
            elif own in _JSON and text.lstrip()[:1] in ("{", "["):
                values[own] = parse_json(text)
            else:
                values[own] = text
        except ValueError:
            problems.append(f"{name}={text[:40]!r} is not a number or JSON")
    if problems:
        raise OptionError("the form cannot be used", problems)
    for name in uploads.keys() & {"input_reference", "image_reference"}:
        values[name] = f"{UPLOAD}{name}"
    asked = read_fields(values)
    asked.uploads = dict(uploads)
    return asked


def read_fields(given: Mapping[str, Any]) -> Asked:
    """What a JSON body says, or a form that was read.

    Raises:
        OptionError: lists what is wrong.
    """
    named = {_ALIASES.get(n, n): v for n, v in given.items() if n not in _IGNORED}
    problems = [unknown_name(n, KNOWN) for n in named if n not in KNOWN]
    values = {n: v for n, v in named.items() if v is not None}  # null: as if it were not there
    for name, read in _NUMBERS.items():
        value = values.get(name)
        if isinstance(value, str) and name == "seconds":  # the openai client sends "4"
            try:
                values[name] = float(value)
            except ValueError:
                problems.append(f"seconds={value[:40]!r} is not a number")
        elif value is not None and (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (read is int and not isinstance(value, int))
            or abs(value) >= 2**64
        ):
            problems.append(f"{name}={str(value)[:40]} is not a {'whole ' * (read is int)}number")
    for name in ("prompt", "model", "size", "negative_prompt", "pipeline"):
        if not isinstance(values.get(name, ""), str):
            problems.append(f"{name} is not text")
    whole = values.get("request", {})
    if not isinstance(whole, dict) or not isinstance(whole.get("config", {}), dict):
        problems.append("request is not an object of this server's schema")
    if not isinstance(values.get("config", {}), dict):
        problems.append("config is not an object")
    if problems:
        raise OptionError("the request cannot be used", problems)
    return _asked(values, whole)


def _asked(values: Mapping[str, Any], whole: Mapping[str, Any]) -> Asked:
    data: dict[str, Any] = {**whole, **{n: values[n] for n in PARTS if n in values}}
    config: dict[str, Any] = {**data.get("config", {}), **_config(values)}
    rate = config.get("frame_rate", _default("frame_rate"))
    if "seconds" in values and "num_frames" not in values:
        config["num_frames"] = frames_of(values["seconds"], rate)
    data["config"] = config
    guidance = {
        name: values[name] for name in ("negative_prompt", "num_inference_steps") if name in values
    }
    if guidance:
        data["guidance"] = {**(data.get("guidance") or {}), **guidance}
    return Asked(
        data=data,
        model=values.get("model"),
        priority=values.get("priority", 0),
        timeout_s=float(values.get("timeout_s", 0.0)),
        shown={"prompt": config.get("prompt", "")},
        guidance_scale=values.get("guidance_scale"),
    )


def _config(values: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        name: values[name]
        for name in ("prompt", "width", "height", "num_frames", "seed", "frame_rate")
        if name in values
    }
    if "size" in values:
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", values["size"])
        if match is None:
            raise OptionError(f"size={values['size'][:40]!r} is not WIDTHxHEIGHT")
        config |= {"width": int(match[1]), "height": int(match[2])}
    reference = values.get("input_reference", values.get("image_reference"))
    if reference is not None:
        config["images"] = [{"path": _reference(reference)}]
    if "loras" in values:
        config["loras"] = _loras(values["loras"])
    return config


def _reference(value: Any) -> str:
    """The text of an image: itself, or in an object `{"image_url": ...}`."""
    if isinstance(value, dict):
        value = value.get("image_url", value.get("url"))
    if isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str):
        raise OptionError('input_reference is a file, a data URL, or {"image_url": ...}')
    return value


def _loras(value: Any) -> list[dict[str, Any]]:
    """`[{"name": ..., "strength": ...}]`, one of these, or a name."""
    entries = value if isinstance(value, list) else [value]
    found = []
    for entry in entries:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not {*entry} <= {"name", "path", "strength"}:
            raise OptionError('loras is [{"name": ..., "strength": ...}]')
        named = entry.get("name", entry.get("path"))
        found.append({"path": named, **{k: v for k, v in entry.items() if k == "strength"}})
    return found


def _default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(GenerationConfig) if f.name == name)


def frames_of(seconds: float, rate: Any) -> int:
    """The number of frames nearest to a duration: `8k+1`.

    Raises:
        OptionError: it is none, or the frame rate is none.
    """
    if not 0 < seconds < 1e6:
        raise OptionError(f"seconds={seconds:g} is not a duration")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6:
        raise OptionError(f"frame_rate={str(rate)[:40]} is not a frame rate")
    return max(round(seconds * rate / _STEP), 0) * _STEP + 1


def parse_body(body: bytes) -> Any:
    """JSON of a body.

    Raises:
        OptionError: it is not.
    """
    try:
        return parse_json(body.decode("utf-8"))
    except (ValueError, json.JSONDecodeError) as error:
        raise OptionError(f"the body is not JSON: {error}") from error
