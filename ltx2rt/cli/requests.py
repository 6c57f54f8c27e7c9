"""What is asked for: flags, on top of a record, read once as a request, without a bundle."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx2rt.cli.fields import all_flags
from ltx2rt.cli.job_file import read_table
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.rows import AUTO
from ltx2rt.cli.run_options import RunOptions
from ltx2rt.components.enhance import EnhanceConfig
from ltx2rt.config import DISTILLED_STRENGTHS, RuntimeConfig
from ltx2rt.errors import OptionError, Problem
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.pipelines.base import Pipeline, pipeline_class
from ltx2rt.pipelines.catalog import read_request
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.plain_data import read_plain, to_plain, unknown_name
from ltx2rt.results.record import Record
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule

#: what the flags hold, by key
Given = Mapping[str, Any]
Guiders = tuple[GuiderParams, GuiderParams]

MODALITIES = ("video", "audio")
ENHANCING = ("enhance_url", "enhance_model", "enhance_timeout")
#: what is asked for besides the request
PARTS: Mapping[str, type[Any]] = {
    "runtime": RuntimeConfig,
    "output": Outputs,
    "enhance": EnhanceConfig,
    "run": RunOptions,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be made.

    Attributes:
        pipeline: its class.
        request: of the first clip.
        seeds: one a clip.
        runtime, output, run: how, and where to.
        enhance: who writes out the prompt; None: nobody.
        given: the flags, for what depends on the bundle.
        record: what is repeated, or None.
    """

    pipeline: type[Pipeline]
    request: Request
    seeds: tuple[int, ...]
    runtime: RuntimeConfig
    output: Outputs
    run: RunOptions
    enhance: EnhanceConfig | None
    given: Given
    record: Record | None = None

    def for_pipeline(self, pipe: Pipeline) -> Asked:
        """The same; guidance that flags change a part of is, for the rest, this pipeline's, and
        what nobody named is as the official command has it for this bundle. A length that the
        model will choose is announced on stderr.
        """
        asked = self
        if isinstance(pipe, GuidedPipeline) and pipe.guided:
            asked = asked_of(self.given, self.record, pipe.default_guiders())
        opened = self._opened(pipe)
        by_model = isinstance(opened.get("num_frames"), AutoDuration)
        if by_model and self.request.config.audio is None and not self.run.quiet:
            print(
                "ltx2rt: note: the clip will be as long as the model finds right for the prompt; "
                "name --num-frames N to fix it.",
                file=sys.stderr,
            )
        config = replace(asked.request.config, **opened)
        if "width" in opened and not self.run.quiet:
            print(
                f"ltx2rt: note: {config.width}x{config.height}, {config.num_frames} frames, for "
                "which this bundle was built; `ltx2rt inspect BUNDLE` lists what else it makes.",
                file=sys.stderr,
            )
        request = replace(asked.request, config=config)
        return replace(asked, request=request, output=self.output, enhance=self.enhance)

    def without_key(self) -> Asked:
        """The same; the enhancer's key stays here: a file named the address, not its owner."""
        enhance = self.enhance and replace(self.enhance, named_by_file=True)
        return replace(self, enhance=enhance)

    def _opened(self, pipe: Pipeline) -> dict[str, Any]:
        """Fields that neither flags nor a record name, as the official command fills them in."""
        if self.record is not None:
            return {}
        named = {*self.given, *(["num_frames"] if "auto_duration" in self.given else ())}
        found = pipe.command_defaults(pipe.source.has)
        config = self.request.config
        if not {"height", "width", "size"} & {*named, *found}:
            fields = {n: getattr(config, n) for n in ("height", "width", "num_frames")}
            found = {**found, **pipe.built_size(fields)}
        return {name: value for name, value in found.items() if name not in named}

    def request_of(self, index: int) -> Request:
        """The request of one of the clips."""
        return replace(self.request, config=replace(self.request.config, seed=self.seeds[index]))


def asked_of(given: Given, record: Record | None = None, guiders: Guiders | None = None) -> Asked:
    """The request that the flags make, on top of the one that is repeated; another pipeline than
    its own takes over neither guidance nor inputs.

    Args:
        guiders: video and audio guidance of the pipeline, which flags change a part of.

    Raises:
        OptionError: lists everything that cannot work.
    """
    name = given.get("pipeline") or (record.pipeline if record else RunOptions().pipeline)
    cls = pipeline_class(name)
    data = _base(given, record, name)
    values, problems = _values(given, cls)
    problems += cls.named_problems(_named(values))
    for place, value in values.items():
        part = place.partition(".")[0]
        if part != "guidance" and (part != "inputs" or cls.takes(place)):
            _put(data, place, value)
    if cls.guided:
        problems += _put_guidance(data, given, values, guiders or (GuiderParams(), GuiderParams()))
    request, wrong = read_request(name, data)
    problems += wrong if request is None else cls.problems(request)
    parts: dict[str, Any] = {"enhance": None}
    for part, kind in PARTS.items():
        if part != "enhance" or "enhance_prompt" in given:
            parts[part], wrong = read_plain(kind, data[part], part)
            problems += wrong
    problems += _combination_problems(given, request)
    if problems or request is None:
        raise cls.refusal([*dict.fromkeys(problems)])
    seeds = _seeds(given, request.config.seed)
    return Asked(pipeline=cls, request=request, seeds=seeds, given=given, record=record, **parts)


def _base(given: Given, record: Record | None, pipeline: str) -> dict[str, Any]:
    """Plain data of what the flags change."""
    data: dict[str, Any] = {part: {} for part in ("config", *PARTS)}
    if record is None:
        return data
    known = to_plain(record.request)
    data |= known if record.pipeline == pipeline else {"config": known["config"]}
    if "prompt" in given:  # another prompt has neither the old one's contexts nor its origin
        data["config"] |= {"embeddings": None, "user_prompt": None}
    # in what order sums are made is a part of the result
    names = ("max_batch_size", "threads", "kernels")
    data["runtime"] = {name: getattr(record, name) for name in names}
    return data


def _values(given: Given, cls: type[Pipeline]) -> tuple[dict[str, Any], list[str]]:
    """Place -> plain data, and what cannot be read."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, flag in all_flags().items():
        if key not in given:
            continue
        places = [place for place in flag.places if cls.takes(place)] or flag.places[:1]
        try:
            values |= flag.values(given[key], places)
        except OptionError as error:
            problems += error.problems
    sides = [f"--{side}" for side in ("height", "width") if side in given]
    if "size" in given and sides:
        problems.append(f"--size says height and width, and so does {' and '.join(sides)}")
    frames = given.get("num_frames", AUTO)
    if frames != AUTO and "auto_duration" in given:
        problems.append(
            f"--auto-duration leaves the number of frames open, --num-frames {frames} fixes it; "
            "give one of them"
        )
    return values, problems


def _named(values: Mapping[str, Any]) -> list[str]:
    """The fields that the flags name, and what they say of a LoRA; a 0 asks for nothing."""
    named = []
    for place, value in values.items():
        if value != 0 or not place.startswith("config."):
            named.append(place)
        if isinstance(value, dict):
            named += [f"{place}.{name}" for name in value]
    return named


def _put(data: Any, place: str, value: Any) -> None:
    *outer, last = place.split(".")
    for name in outer:
        data = data.setdefault(name, {})
    data[int(last) if isinstance(data, list) else last] = value


def _put_guidance(
    data: dict[str, Any], given: Given, values: Mapping[str, Any], guiders: Guiders
) -> list[str]:
    """Put the guidance flags on top of what is recorded, or of the pipeline's; gives back what is
    wrong with their file.
    """
    places = [place for place in values if place.startswith("guidance.")]
    if not places:
        return []
    guidance = data["guidance"] = data.get("guidance") or {}
    openings = {m: to_plain(guider) for m, guider in zip(MODALITIES, guiders, strict=True)}
    openings["distilled_strengths"] = list(DISTILLED_STRENGTHS)
    for name, opening in openings.items():
        if any(place.startswith(f"guidance.{name}.") for place in places):
            guidance[name] = guidance.get(name) or opening
            if name in MODALITIES:  # plain flags replace a recorded schedule
                guidance[f"{name}_schedule"] = None
    for place in places:
        if not place.endswith("_schedule"):
            _put(data, place, values[place])
    path = given.get("guidance_schedule")
    return [] if path is None else _put_schedules(guidance, openings, Path(path))


def _put_schedules(guidance: dict[str, Any], openings: Mapping[str, Any], path: Path) -> list[str]:
    """Put guidance by noise level; what a bin leaves out is as without the file."""
    problems: list[str] = []
    try:
        table = read_table(path)
    except OptionError as error:
        return [*error.problems]
    for modality, bins in table.items():
        if modality not in MODALITIES:
            problems.append(f"{path}: {unknown_name(modality, MODALITIES)}")
            continue
        around = guidance.get(modality) or openings[modality]
        if isinstance(bins, dict):
            bins = {b: {**around, **p} if isinstance(p, dict) else p for b, p in bins.items()}
        schedule = {"bins": bins}
        wrong = read_plain(GuiderSchedule, schedule)[1]
        problems += [Problem(f"{path}: {modality}: ", problem) for problem in wrong]
        guidance[f"{modality}_schedule"] = schedule
    return problems


def _combination_problems(given: Given, request: Request | None) -> list[str]:
    """Flags that do not go together, beside what the pipeline says of a request."""
    problems = []
    seeds, count = given.get("seed", ()), given.get("num_videos")
    if count is not None and len(seeds) > 1 and len(seeds) != count:
        problems.append(f"--num-videos {count} does not fit {len(seeds)} seeds; leave one out")
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        problems.append(f"--seed names {', '.join(map(str, twice))} twice: it is the same clip")
    more = [f"--{key.replace('_', '-')}" for key in given if key in ENHANCING]
    if more and "enhance_prompt" not in given:
        problems.append(f"{', '.join(more)} needs --enhance-prompt")
    if "enhance_prompt" in given:
        if "embeddings" in given:
            problems.append("--enhance-prompt cannot be used with --embeddings")
    if "save_embeddings" in given:
        if "embeddings" in given:
            problems.append("--embeddings and --save-embeddings exclude each other")
        elif request is not None and not request.config.prompt:
            problems.append("--save-embeddings needs --prompt TEXT")
    return problems


def _seeds(given: Given, first: int) -> tuple[int, ...]:
    """One a clip: those given, or so many from the first one on."""
    seeds = given.get("seed") or [first]
    return tuple(
        seeds if len(seeds) > 1 else range(seeds[0], seeds[0] + given.get("num_videos", 1))
    )
