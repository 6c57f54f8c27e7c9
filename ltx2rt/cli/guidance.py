"""The guidance flags of `ltx2rt generate`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ltx2rt.cli.common import parse_lora
from ltx2rt.cli.inputs import problems_of as input_problems
from ltx2rt.config import GuidanceConfig
from ltx2rt.errors import OptionError, join_problems
from ltx2rt.guidance import GuiderParams
from ltx2rt.pipelines.catalog import pipeline_class

if TYPE_CHECKING:
    from ltx2rt.pipelines.guided import GuidedPipeline

#: field of `GuiderParams` -> (flag per modality, type, help)
_SCALES = {
    "cfg_scale": ("{m}-cfg-guidance-scale", float, "away from the negative prompt; 1 is off"),
    "stg_scale": ("{m}-stg-guidance-scale", float, "away from perturbed self-attention; 0 is off"),
    "rescale_scale": ("{m}-rescale-scale", float, "share rescaled to the plain deviation"),
    "modality_scale": ("{x}-guidance-scale", float, "away from the lone modality; 1 is off"),
    "skip_step": ("{m}-skip-step", int, "run the model every N + 1 steps"),
}
_CROSS = {"video": "a2v", "audio": "v2a"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that the guided pipelines take; all default to those of pipeline and model version."""
    group = parser.add_argument_group("guidance (for guided pipelines)")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what the clip must not be")
    group.add_argument("--num-inference-steps", type=int, metavar="N", help="steps of stage 1")
    group.add_argument(
        "--distilled-lora",
        metavar="FILE[:STRENGTH]",
        help="two-stage pipelines need one; strength 1 if omitted",
    )
    for stage, default in ((1, 0.25), (2, 0.5)):
        group.add_argument(
            f"--distilled-lora-strength-stage-{stage}",
            type=float,
            metavar="X",
            help=f"two-stage-hq: its strength in stage {stage}; default {default}",
        )
    for modality in _CROSS:
        for name, (_, kind, text) in _SCALES.items():
            group.add_argument(
                _flag(modality, name),
                dest=f"{modality}_{name}",
                type=kind,
                metavar="N" if kind is int else "X",
                help=f"{modality}: {text}",
            )
        group.add_argument(
            f"--{modality}-stg-blocks",
            dest=f"{modality}_stg_blocks",
            type=int,
            nargs="*",
            metavar="N",
            help=f"{modality}: transformer blocks that are perturbed",
        )


def check_flags(options: argparse.Namespace) -> None:
    """Refuse combinations that cannot work, before anything is opened.

    Raises:
        OptionError: lists all of them.
    """
    pipeline = options.pipeline
    strengths = [options.distilled_lora_strength_stage_1, options.distilled_lora_strength_stage_2]
    problems = input_problems(options)
    cls = pipeline_class(pipeline)
    if not cls.guided:
        given = _given(options)
        if given:
            problems.append(
                f"{', '.join(given)} cannot be used with --pipeline {pipeline}, which is not "
                "guided; leave it out or choose another pipeline"
            )
    else:
        if cls.two_stage and options.distilled_lora is None:
            problems.append(
                f"--pipeline {pipeline} needs --distilled-lora FILE for its second stage"
            )
        if not cls.two_stage and options.distilled_lora is not None:
            problems.append(f"--pipeline {pipeline} has no stage for --distilled-lora; use --lora")
        if pipeline != "two-stage-hq" and any(s is not None for s in strengths):
            problems.append(
                "--distilled-lora-strength-stage-1 and -2 are for --pipeline two-stage-hq; "
                "otherwise write --distilled-lora FILE:STRENGTH"
            )
        if pipeline == "two-stage-hq" and options.distilled_lora is not None:
            lora = parse_lora(options.distilled_lora)
            if lora.path != options.distilled_lora:
                problems.append(
                    "--pipeline two-stage-hq takes the strengths of --distilled-lora from "
                    "--distilled-lora-strength-stage-1 and -2"
                )
        if pipeline == "keyframe" and not options.images:
            problems.append("--pipeline keyframe needs at least one --image")
    if problems:
        raise OptionError(join_problems("cannot generate", problems))


def guidance_of(options: argparse.Namespace, pipeline: GuidedPipeline) -> GuidanceConfig:
    """The flags as a `GuidanceConfig`; what is not given takes the pipeline's defaults."""
    video, audio = (
        dataclasses.replace(default, **_params(options, modality))
        for modality, default in zip(_CROSS, pipeline.default_guiders(), strict=True)
    )
    given: dict[str, Any] = {
        name: value
        for name in ("negative_prompt", "num_inference_steps")
        if (value := getattr(options, name)) is not None
    }
    if options.distilled_lora is not None:
        given["distilled_lora"] = parse_lora(options.distilled_lora)
    strengths = (options.distilled_lora_strength_stage_1, options.distilled_lora_strength_stage_2)
    if any(s is not None for s in strengths):
        given["distilled_strengths"] = tuple(
            default if s is None else s for s, default in zip(strengths, (0.25, 0.5), strict=True)
        )
    return GuidanceConfig(video=video, audio=audio, **given)


def _params(options: argparse.Namespace, modality: str) -> dict[str, Any]:
    values = {
        f.name: getattr(options, f"{modality}_{f.name}") for f in dataclasses.fields(GuiderParams)
    }
    return {k: tuple(v) if k == "stg_blocks" else v for k, v in values.items() if v is not None}


def _given(options: argparse.Namespace) -> list[str]:
    """The guidance flags on this command line."""
    names = ["negative_prompt", "num_inference_steps", "distilled_lora"]
    names += [f"distilled_lora_strength_stage_{n}" for n in (1, 2)]
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    for modality in _CROSS:
        flags |= {f"{modality}_{name}": _flag(modality, name) for name in _SCALES}
        flags[f"{modality}_stg_blocks"] = f"--{modality}-stg-blocks"
    return [flag for name, flag in flags.items() if getattr(options, name) is not None]


def _flag(modality: str, name: str) -> str:
    return "--" + _SCALES[name][0].format(m=modality, x=_CROSS[modality])
