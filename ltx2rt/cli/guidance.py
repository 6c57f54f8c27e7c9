"""The guidance flags of `ltx2rt generate`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2rt.cli.common import parse_lora, text_or_file
from ltx2rt.cli.job_file import read_job
from ltx2rt.config import DISTILLED_STRENGTHS, GenerationConfig, GuidanceConfig
from ltx2rt.errors import OptionError
from ltx2rt.plain_data import from_plain, to_plain, unknown_name
from ltx2rt.sampling.guidance import CFG_MODES, GuiderParams, GuiderSchedule
from ltx2rt.sampling.schedules import SCHEDULERS

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline
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
#: fields of `GuiderParams` with one flag for both modalities -> (arguments, help)
_BOTH: dict[str, tuple[dict[str, Any], str]] = {
    "cfg_mode": (
        {"choices": [m.replace("_", "-") for m in CFG_MODES]},
        "how the difference to the negative prompt is used; default cfg",
    ),
    "apg_eta": ({"type": float, "metavar": "X"}, "apg: share kept along the prediction; default 1"),
    "apg_norm_threshold": (
        {"type": float, "metavar": "X"},
        "apg: largest norm of the difference; default 0: no limit",
    ),
    "apg_momentum": ({"type": float, "metavar": "X"}, "apg: weight of earlier steps; default 0"),
}
_PLAIN = ("negative_prompt", "num_inference_steps", "scheduler", "guidance_schedule")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that the guided pipelines take; all default to those of pipeline and model version."""
    group = parser.add_argument_group("guidance (for guided pipelines)")
    group.add_argument(
        "--negative-prompt",
        type=text_or_file,
        metavar="TEXT|@FILE",
        help="what the clip must not be, or @ and a file of it; default: a list of artefacts",
    )
    group.add_argument("--num-inference-steps", type=int, metavar="N", help="steps of stage 1")
    group.add_argument(
        "--scheduler",
        choices=[s.replace("_", "-") for s in SCHEDULERS],
        help="makes the noise levels of stage 1; default ltx2",
    )
    group.add_argument(
        "--guidance-schedule",
        type=Path,
        metavar="FILE",
        help='guidance by noise level, JSON: {"video": {"1.0": {"cfg_scale": 5}, "0.5": {}}}',
    )
    for name, (arguments, text) in _BOTH.items():
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, help=text, **arguments)
    group.add_argument(
        "--distilled-lora",
        metavar="FILE[:STRENGTH]",
        help="two-stage pipelines need one; strength 1 if omitted",
    )
    for stage, default in enumerate(DISTILLED_STRENGTHS, 1):
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


def problems_of(
    options: argparse.Namespace,
    pipeline: type[Pipeline],
    config: GenerationConfig,
    base: GuidanceConfig | None,
) -> list[str]:
    """Combinations that cannot work, found before anything is opened; `base` is the guidance of
    the record that is repeated.
    """
    name = pipeline.name
    strengths = [options.distilled_lora_strength_stage_1, options.distilled_lora_strength_stage_2]
    if not pipeline.guided:
        given = _given(options)
        if not given:
            return []
        return [
            f"{', '.join(given)} cannot be used with --pipeline {name}, which is not guided; leave "
            "it out or choose another pipeline"
        ]
    problems = []
    has_lora = options.distilled_lora is not None or (base is not None and base.distilled_lora)
    if pipeline.two_stage and not has_lora:
        problems.append(f"--pipeline {name} needs --distilled-lora FILE for its second stage")
    if not pipeline.two_stage and options.distilled_lora is not None:
        problems.append(f"--pipeline {name} has no stage for --distilled-lora; use --lora")
    if name != "two-stage-hq" and any(s is not None for s in strengths):
        problems.append(
            "--distilled-lora-strength-stage-1 and -2 are for --pipeline two-stage-hq; "
            "otherwise write --distilled-lora FILE:STRENGTH"
        )
    if name == "two-stage-hq" and options.distilled_lora is not None:
        lora = parse_lora(options.distilled_lora)
        if lora.path != options.distilled_lora:
            problems.append(
                "--pipeline two-stage-hq takes the strengths of --distilled-lora from "
                "--distilled-lora-strength-stage-1 and -2"
            )
    if name == "keyframe" and not config.images:
        problems.append("--pipeline keyframe needs at least one --image")
    if config.sigmas is not None and options.num_inference_steps is not None:
        problems.append("--num-inference-steps and --sigmas exclude each other")
    if options.guidance_schedule is not None:
        try:
            _schedule_file(options.guidance_schedule)
        except OptionError as error:
            problems.append(str(error))
    return problems


def guidance_of(
    options: argparse.Namespace, pipeline: GuidedPipeline, base: GuidanceConfig | None = None
) -> GuidanceConfig:
    """The flags as a `GuidanceConfig`; what is not given is as in `base`, or takes the pipeline's
    defaults.
    """
    base = base or GuidanceConfig()
    given: dict[str, Any] = {
        name: value
        for name in ("negative_prompt", "num_inference_steps")
        if (value := getattr(options, name)) is not None
    }
    defaults = dict(zip(_CROSS, pipeline.default_guiders(), strict=True))
    for modality, default in defaults.items():
        params = _params(options, modality)
        given[modality] = dataclasses.replace(getattr(base, modality) or default, **params)
        if params:  # plain flags replace a recorded schedule
            given[f"{modality}_schedule"] = None
    if options.guidance_schedule is not None:
        given |= _schedules(options.guidance_schedule, given)
    if options.scheduler is not None:
        given["scheduler"] = options.scheduler.replace("-", "_")
    if options.distilled_lora is not None:
        given["distilled_lora"] = parse_lora(options.distilled_lora)
    strengths = (options.distilled_lora_strength_stage_1, options.distilled_lora_strength_stage_2)
    if any(s is not None for s in strengths):
        before = base.distilled_strengths or DISTILLED_STRENGTHS
        given["distilled_strengths"] = tuple(
            default if s is None else s for s, default in zip(strengths, before, strict=True)
        )
    return dataclasses.replace(base, **given)


def _schedule_file(path: Path) -> dict[str, Any]:
    """The parsed file of `--guidance-schedule`, checked as far as it goes without the defaults."""
    data = read_job(path)
    for modality, bins in data.items():
        if modality not in _CROSS:
            raise OptionError(f"{path}: {unknown_name(modality, _CROSS)}.")
        if isinstance(bins, dict):  # APG's numbers need its mode, which a flag may set
            apg = {"cfg_mode": "apg"}
            bins = {b: {**apg, **p} if isinstance(p, dict) else p for b, p in bins.items()}
        from_plain(GuiderSchedule, {"bins": bins}, f"{path}: {modality}")
    return data


def _schedules(path: Path, guiders: dict[str, Any]) -> dict[str, GuiderSchedule]:
    """Schedules of the modalities in the file; what a bin leaves out is as without it."""
    return {
        f"{modality}_schedule": from_plain(
            GuiderSchedule,
            {"bins": {b: {**to_plain(guiders[modality]), **p} for b, p in bins.items()}},
            f"{path}: {modality}",
        )
        for modality, bins in _schedule_file(path).items()
    }


def _params(options: argparse.Namespace, modality: str) -> dict[str, Any]:
    values = {
        f.name: getattr(options, f.name if f.name in _BOTH else f"{modality}_{f.name}")
        for f in dataclasses.fields(GuiderParams)
    }
    read: dict[str, Any] = {"stg_blocks": tuple, "cfg_mode": lambda text: text.replace("-", "_")}
    return {k: read[k](v) if k in read else v for k, v in values.items() if v is not None}


def flag_names() -> dict[str, str]:
    """Every guidance flag: its `dest` and its name."""
    names = [*_PLAIN, *_BOTH, "distilled_lora"]
    names += [f"distilled_lora_strength_stage_{n}" for n in (1, 2)]
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    for modality in _CROSS:
        flags |= {f"{modality}_{name}": _flag(modality, name) for name in _SCALES}
        flags[f"{modality}_stg_blocks"] = f"--{modality}-stg-blocks"
    return flags


def not_for(pipeline: type[Pipeline]) -> set[str]:
    """Guidance flags (their `dest`) that a pipeline does not take."""
    from ltx2rt.pipelines.guided import GuidedPipeline

    if not issubclass(pipeline, GuidedPipeline):
        return {*flag_names()}
    absent = set() if pipeline.two_stage else {"distilled_lora"}
    if pipeline.name != "two-stage-hq":
        absent |= {f"distilled_lora_strength_stage_{n}" for n in (1, 2)}
    if pipeline.makes == "audio":  # no video to turn to
        absent.add("audio_modality_scale")
    unguided = tuple(f"{modality}_" for modality in _CROSS if modality not in pipeline.guides)
    return absent | {name for name in flag_names() if name.startswith(unguided)}


def _given(options: argparse.Namespace) -> list[str]:
    """The guidance flags on this command line."""
    return [flag for name, flag in flag_names().items() if getattr(options, name) is not None]


def _flag(modality: str, name: str) -> str:
    return "--" + _SCALES[name][0].format(m=modality, x=_CROSS[modality])
