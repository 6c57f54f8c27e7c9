"""The flags of `ltx2rt generate` as a request: read and checked before a bundle is opened."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2rt.cli import enhancement as enhancement_flags
from ltx2rt.cli import guidance as guidance_flags
from ltx2rt.cli import inputs as input_flags
from ltx2rt.cli.common import parse_lora
from ltx2rt.config import GenerationConfig, GuidanceConfig, ImageCondition, RuntimeConfig
from ltx2rt.errors import OptionError, join_problems
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.results.record import Record

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline

DEFAULT_PIPELINE = "distilled"
MAX_VIDEOS = 10_000
AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be made.

    Attributes:
        pipeline: its class.
        config: of the first clip.
        seeds: one a clip.
        inputs: of the pipeline.
        options: the flags, from which `guidance` is made once the pipeline is there.
        record: what is repeated, or None.
    """

    pipeline: type[Pipeline]
    config: GenerationConfig
    seeds: tuple[int, ...]
    inputs: Any
    options: argparse.Namespace
    record: Record | None = None

    @property
    def configs(self) -> Iterator[GenerationConfig]:
        """One a clip."""
        return (dataclasses.replace(self.config, seed=seed) for seed in self.seeds)

    def for_bundle(self, has: Callable[..., bool]) -> Asked:
        """With what nobody named filled in as the official command does, for a bundle that `has`
        these components; a record that is repeated names everything. A length that the model
        will choose is announced on stderr.
        """
        if self.record is not None:
            return self
        options = vars(self.options)
        open_fields = {n for n in ("num_frames", "tiling") if options.get(n) is None}
        if options.get("auto_duration") is not None:
            open_fields.discard("num_frames")
        found = self.pipeline.command_defaults(has)
        found = {name: value for name, value in found.items() if name in open_fields}
        if "num_frames" in found and not self.options.quiet:
            print(
                "ltx2rt: note: the clip will be as long as the model finds right for the prompt; "
                "name --num-frames N to fix it.",
                file=sys.stderr,
            )
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **found))

    def guidance(self, pipe: Pipeline) -> GuidanceConfig | None:
        """Guidance for a pipeline; None for one without."""
        from ltx2rt.pipelines.guided import GuidedPipeline

        if not isinstance(pipe, GuidedPipeline):
            return None
        same = self.record is not None and self.record.pipeline == pipe.name
        base = self.record.request.guidance if self.record and same else None
        return guidance_flags.guidance_of(self.options, pipe, base)


def asked_of(options: argparse.Namespace, record: Record | None = None) -> Asked:
    """The request that the flags make, on top of the one that is repeated; another pipeline than
    its own takes over neither guidance nor inputs.

    Raises:
        OptionError: lists everything that cannot work.
    """
    name = options.pipeline or (record.pipeline if record else DEFAULT_PIPELINE)
    options = argparse.Namespace(**{**vars(options), "pipeline": name})
    pipeline = pipeline_class(name)
    base = record.request if record else None
    same = base is not None and record is not None and record.pipeline == name
    problems = input_flags.problems_of(options, has_inputs=bool(same))
    problems += enhancement_flags.problems_of(options)
    refusals: list[str] = []  # whole messages
    config, inputs = None, None
    try:
        inputs = input_flags.inputs_of(options, pipeline, base.inputs if base and same else None)
    except OptionError as error:
        refusals.append(str(error))
    try:
        config = config_of(options, base.config if base else None, inputs)
    except OptionError as error:
        refusals.append(str(error))
    if config is not None:
        before = base.guidance if base and same else None
        problems += guidance_flags.problems_of(options, pipeline, config, before)
    seeds: tuple[int, ...] = ()
    try:
        seeds = seeds_of(options, base.config.seed if base else None)
    except OptionError as error:
        problems.append(str(error))
    if config is not None and pipeline.needs_prompt:
        if not config.prompt and config.embeddings is None:
            problems.append(f"--pipeline {name} needs --prompt TEXT")
    elif config is not None and options.save_embeddings is not None and not config.prompt:
        problems.append("--save-embeddings needs --prompt TEXT")
    if len(refusals) == 1 and not problems:
        raise OptionError(refusals[0])
    problems += [text.removeprefix("cannot generate: ") for text in refusals]
    if problems or config is None:
        raise OptionError(join_problems("cannot generate", problems))
    return Asked(
        pipeline=pipeline, config=config, seeds=seeds, inputs=inputs, options=options, record=record
    )


def config_of(
    options: argparse.Namespace, base: GenerationConfig | None = None, inputs: Any = None
) -> GenerationConfig:
    """The flags as a `GenerationConfig`; what is not given is as in `base`, or else as the
    pipeline has it for these `inputs`.
    """
    given = {
        f.name: value
        for f in dataclasses.fields(GenerationConfig)
        if (value := getattr(options, f.name, None)) is not None
    }
    if options.seeds:
        given["seed"] = options.seeds[0]
    lists: dict[str, Callable[[Any], Any]] = {
        "images": parse_image,
        "loras": parse_lora,
        "stage_2_loras": parse_lora,
        "sigmas": float,
        "stage_2_sigmas": float,
    }
    for name, read in lists.items():
        if name in given:
            given[name] = tuple(read(v) for v in given[name])
    for name in ("sampler", "stage_2_sampler"):
        if name in given:
            given[name] = given[name].replace("-", "_")
    if "num_frames" in given or options.auto_duration is not None:
        given["num_frames"] = frames_of(options.num_frames, options.auto_duration)
    if base is not None:
        if "prompt" in given:  # another prompt has neither the old one's contexts nor its origin
            given = {"embeddings": None, "user_prompt": None, **given}
        return dataclasses.replace(base, **given)
    defaults = pipeline_class(options.pipeline or DEFAULT_PIPELINE).defaults(inputs)
    return GenerationConfig(**{**defaults, **given})


def seeds_of(options: argparse.Namespace, base: int | None = None) -> tuple[int, ...]:
    """One seed a clip: those given, or `--num-videos` from the first one on.

    Raises:
        OptionError: a number of clips that is not allowed, or does not fit several seeds.
    """
    default = GenerationConfig.__dataclass_fields__["seed"].default
    seeds = tuple(options.seeds or (default if base is None else base,))
    count = options.num_videos
    if count is None:
        return seeds
    if not 1 <= count <= MAX_VIDEOS:
        raise OptionError(f"num_videos={count} is not in [1, {MAX_VIDEOS}]")
    if len(seeds) > 1 and len(seeds) != count:
        raise OptionError(f"num_videos={count} does not fit {len(seeds)} seeds; leave one out")
    return seeds if len(seeds) > 1 else tuple(seeds[0] + i for i in range(count))


def runtime_of(options: argparse.Namespace, record: Record | None = None) -> RuntimeConfig:
    """The flags as a `RuntimeConfig`; in what order sums are made is as in the record that is
    repeated, where no flag says it.
    """
    given = {
        f.name: value
        for f in dataclasses.fields(RuntimeConfig)
        if (value := getattr(options, f.name, None)) is not None
    }
    if record is not None:
        given = {"max_batch_size": record.max_batch_size, "threads": record.threads, **given}
    return RuntimeConfig(**given)


def frames_of(frames: int | str | None, limits: list[float] | None) -> int | AutoDuration:
    """`--num-frames` and `--auto-duration` together.

    Raises:
        OptionError: they contradict each other, or the limits are no range.
    """
    if limits is None:
        return AutoDuration() if frames in (None, AUTO) else int(frames or 0)
    if isinstance(frames, int):
        raise OptionError(
            f"--auto-duration leaves the number of frames open, --num-frames {frames} fixes it; "
            "give one of them."
        )
    return AutoDuration(min_s=limits[0], max_s=limits[1])


def parse_frames(text: str) -> int | str:
    """`121` or `auto`."""
    if text == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}; or {AUTO}") from error


def parse_seeds(text: str) -> list[int]:
    """`7` or `1,2,3`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from error


def parse_image(text: str) -> ImageCondition:
    """`FILE[@FRAME[:STRENGTH[:CRF]]]`."""
    path, at, rest = text.rpartition("@")
    if not at or not path or Path(text).exists():  # a name like photo@2x.png
        return ImageCondition(path=Path(text))
    parts = rest.split(":")
    try:
        if len(parts) > 3:
            raise ValueError(rest)
        return ImageCondition(
            path=Path(path),
            frame=int(parts[0]),
            strength=float(parts[1]) if len(parts) > 1 else 1.0,
            crf=int(parts[2]) if len(parts) > 2 else None,
        )
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(
            f"--image {text!r} is not FILE[@FRAME[:STRENGTH[:CRF]]]; an example: photo.png@0:0.8"
        ) from error
