"""The flags of `ltx2rt generate`, one for every field of a request and of how it is run.

They are made from the dataclasses: names, types, defaults and docstrings. A row of `ROWS` changes
what the command line says otherwise; a field of a pipeline's `Inputs` needs none.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from ltx2rt.cli.flags import Flag
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.rows import (
    ENHANCE,
    GUIDED,
    ROWS,
    WHAT,
    file_with_strength,
    image,
    neighbour,
    window,
)
from ltx2rt.cli.run_options import RunOptions
from ltx2rt.components.enhance import EnhanceConfig
from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.config import (
    DISTILLED_STRENGTHS,
    GenerationConfig,
    GuidanceConfig,
    ImageCondition,
    NeighbourClip,
    RuntimeConfig,
)
from ltx2rt.docstrings import attribute_texts
from ltx2rt.errors import Field
from ltx2rt.latents.frame_sizes import frame_size
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.base import Pipeline, pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.retake_inputs import TimeWindow
from ltx2rt.sampling.guidance import GuiderParams

#: fields without a flag, and why
WITHOUT_FLAG = {
    "enhance.named_by_file": "the command line knows where the address came from",
    "config.user_prompt": "a record's: what the prompt was before it was enhanced",
    "guidance.video": "its fields have flags",
    "guidance.audio": "its fields have flags",
    "guidance.audio_schedule": "--guidance-schedule sets both",
    "guidance.distilled_strengths": "its two numbers have flags",
}
#: the other modality's influence on one
CROSS = {"video": "a2v", "audio": "v2a"}
#: fields of `GuiderParams` that one flag sets for both modalities
SHARED = ("cfg_mode", "apg_eta", "apg_norm_threshold", "apg_momentum")
#: what flags call a field of `GuiderParams` otherwise: {m} is a modality, {x} the other's influence
GUIDERS = {
    "cfg_scale": "--{m}-cfg-guidance-scale",
    "stg_scale": "--{m}-stg-guidance-scale",
    "modality_scale": "--{x}-guidance-scale",
}

AUTO_DURATION = Flag(
    name="--auto-duration",
    places=("config.num_frames",),
    group=WHAT,
    help="limits of --num-frames auto, which this implies, in seconds; default 1 20",
    convert=float,
    count=2,
    metavar=("MIN", "MAX"),
    read=lambda limits: dict(zip(("min_s", "max_s"), limits, strict=True)),
)
SIZE = Flag(
    name="--size",
    places=("config.height", "config.width"),
    group=WHAT,
    help="instead of both: WIDTHxHEIGHT, or 480p, 720p, 1080p, 1440p, 4k, with -portrait or "
    "-square; default: theirs",
    metavar="SIZE",
    read=frame_size,
    spread=True,
)
#: flags that say in another way what other flags say
SHORTHANDS = (AUTO_DURATION, SIZE)


@functools.cache
def all_flags() -> Mapping[str, Flag]:
    """Every flag by its key, in the order of the help."""
    found = [
        *_of(GenerationConfig, "config", WHAT),
        *SHORTHANDS,
        *_of(EnhanceConfig, "enhance", ENHANCE),
        *_of(GuidanceConfig, "guidance", GUIDED),
        *(
            Flag(
                name=f"--distilled-lora-strength-stage-{stage + 1}",
                places=(f"guidance.distilled_strengths.{stage}",),
                group=GUIDED,
                help=f"two-stage-hq: its strength in stage {stage + 1}; default {strength}",
                convert=float,
                metavar="X",
            )
            for stage, strength in enumerate(DISTILLED_STRENGTHS)
        ),
        *(flag for m in CROSS for flag in _of(GuiderParams, f"guidance.{m}", GUIDED)),
        *_inputs(),
        *_of(Outputs, "output", "output"),
        *_of(RuntimeConfig, "runtime", "how to run"),
        *_of(RunOptions, "run", "how to run"),
    ]
    return {flag.key: flag for flag in found}


def flags_for(pipeline: type[Pipeline]) -> list[Flag]:
    """Those that mean something to a pipeline."""
    hidden = set() if pipeline.auto_duration else {AUTO_DURATION.key}
    if pipeline.makes == "audio":
        hidden |= {"stream", "frames"}
    return [
        flag
        for flag in all_flags().values()
        if flag.key not in hidden and any(pipeline.takes(place) for place in flag.places)
    ]


def input_flags(pipeline: str) -> list[str]:
    """The flags of a pipeline's own inputs."""
    own = [flag for flag in all_flags().values() if flag.places[0].startswith("inputs.")]
    return [flag.name for flag in own if pipeline_class(pipeline).takes(flag.places[0])]


def spell(field: Field) -> str:
    """A field in a message as its flag, or as those of its two parts; its own name where none, or
    one of several, may be meant.
    """
    flags = [flag for flag in all_flags().values() if flag not in SHORTHANDS]
    places = [(f".{place}", flag.name) for flag in flags for place in flag.places]
    exact = {n for p, n in places if p.endswith(f".{field}") or f".{field}".endswith(p)}
    parts = {n for p, n in places if p.rpartition(".")[0].endswith(f".{field}")}
    if len(exact) == 1 or (not exact and len(parts) == 2):
        return " and ".join(sorted(exact or parts))
    return field.own_name()


def _of(cls: type[Any], part: str, group: str) -> Iterator[Flag]:
    """The flags of a dataclass that lies at `part` in a request."""
    hints, texts = typing.get_type_hints(cls), attribute_texts(cls)
    for field in dataclasses.fields(cls):
        place = f"{part}.{field.name}"
        if place in WITHOUT_FLAG:
            continue
        row: dict[str, Any] = {
            "name": f"--{field.name.replace('_', '-')}",
            "places": (place,),
            "group": group,
            "help": texts.get(field.name, ""),
            **spelling(hints[field.name], field.default),
        }
        default = field.default
        if cls is GuiderParams:
            modality = part.rpartition(".")[2]
            if field.name in SHARED:
                if modality != next(iter(CROSS)):
                    continue
                row["places"] = tuple(f"guidance.{m}.{field.name}" for m in CROSS)
            else:
                name = GUIDERS.get(field.name, f"--{{m}}{row['name'][1:]}")
                row["name"] = name.format(m=modality, x=CROSS[modality])
                row["help"] = f"{modality}: {row['help']}"
                default = None  # the pipeline's
        row |= ROWS.get(place, {})
        if row["action"] == "store_true" and default is True:
            row["name"] = f"--no-{row['name'][2:]}"
        elif "default" not in row["help"] and (shown := default_text(default)):
            row["help"] += f"; default {shown}"
        yield Flag(**row)


def _inputs() -> Iterator[Flag]:
    """The flags of all pipelines' `Inputs`, those of the same pipelines together."""
    pipelines: dict[str, list[str]] = {}
    found: dict[str, Flag] = {}
    for name in PIPELINES:
        cls = pipeline_class(name).Inputs
        for flag in _of(cls, "inputs", "") if cls is not None else ():
            found.setdefault(flag.key, flag)
            pipelines.setdefault(flag.key, []).append(name)
    for key, flag in found.items():
        group = f"only for --pipeline {', '.join(pipelines[key])}"
        yield dataclasses.replace(flag, group=group)


def spelling(hint: Any, default: Any = None) -> dict[str, Any]:
    """How a field of a type is written, as fields of a `Flag`.

    Args:
        hint: of a union the first member counts.
        default: of the field.
    """
    if typing.get_origin(hint) in (Union, types.UnionType):
        hint = typing.get_args(hint)[0]
    file = {"is_path": True, "metavar": "FILE[:STRENGTH]", "read": file_with_strength}
    simple: dict[Any, dict[str, Any]] = {
        str: {"metavar": "TEXT"},
        int: {"convert": int, "metavar": "N"},
        float: {"convert": float, "metavar": "X"},
        Path: {"is_path": True, "metavar": "FILE"},
        bool: {"action": "store_true", "read": lambda _: not default},
        ImageCondition: {
            "is_path": True, "metavar": "FILE[@FRAME[:STRENGTH[:CRF]]]", "read": image
        },
        TimeWindow: {"metavar": "START-END", "read": window},
        NeighbourClip: {"is_path": True, "metavar": "FILE[@FRAMES]", "read": neighbour},
        Lora: file,
        ReferenceFile: file,
    }  # fmt: skip
    if hint in simple:
        return {"action": "store", **simple[hint]}
    if typing.get_origin(hint) is Literal:
        choices = {str(value).replace("_", "-"): value for value in typing.get_args(hint)}
        return {"action": "store", "choices": tuple(choices), "read": choices.__getitem__}
    if typing.get_origin(hint) is tuple:
        one = spelling(typing.get_args(hint)[0])
        if "read" not in one:
            return {**one, "count": "*" if default == () else "+"}
        read = one["read"]
        return {**one, "action": "append", "read": lambda values: [read(v) for v in values]}
    return {"action": "store"}  # a row says how


def default_text(value: Any) -> str:
    """A default as the help shows it; nothing for what is off, absent or long."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value).replace("_", "-")
    return text if len(text) < 20 else ""
