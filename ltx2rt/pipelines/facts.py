"""What a pipeline is, before there is a bundle: what it takes, needs and refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from ltx2rt.errors import Field, Ltx2rtError, MediaError, OptionError, Problem
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.media.files import OutputKind
from ltx2rt.media.reader import probe_video
from ltx2rt.names import DIFFUSION_DECODER, DURATION_HEAD, VIDEO_DECODER
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from ltx2rt.pipelines.checks import stage_option_problems
from ltx2rt.pipelines.request import Request
from ltx2rt.results.latent_file import record_of_latents

#: fields of `GenerationConfig` that ask for something unless they are empty
GIVEN_FIELDS: tuple[str, ...] = (
    "images", "generated_keyframes", "hdr", "stage_2_loras", "stage_2_tile", "audio", "after",
    "before",
)  # fmt: skip
#: fields of `GenerationConfig` about sound and clips that exist
MEDIA_FIELDS: tuple[str, ...] = (
    "audio",
    "audio_start_time",
    "audio_max_duration",
    "with_audio",
    "after",
    "before",
)


class PipelineFacts:
    """The facts of a pipeline and the rules of its requests; `Pipeline` adds how it runs."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    #: one sentence for `ltx2rt pipelines`, where the docstring's first paragraph does not serve
    summary: ClassVar[str] = ""
    #: whether it samples with guidance (`GuidanceConfig`)
    guided: ClassVar[bool] = False
    #: whether stage 1 works at half size and a second stage refines it
    two_stage: ClassVar[bool] = False
    #: the pipeline that makes the same with the other kind of model, distilled or not
    counterpart: ClassVar[str | None] = None
    #: a frozen dataclass of what this pipeline takes besides `GenerationConfig`; None: nothing
    Inputs: ClassVar[type[Any] | None] = None
    #: height and width where none are asked for; None: those of the input, or it has none
    default_size: ClassVar[tuple[int, int] | None] = (1024, 1536)
    #: fields of `GenerationConfig` that mean nothing here; naming one is refused
    unused: ClassVar[tuple[str, ...]] = ()
    #: whether `num_frames` may be an `AutoDuration`
    auto_duration: ClassVar[bool] = False
    #: what a clip of it is: a picture (with sound), or sound alone
    makes: ClassVar[Literal["video", "audio"]] = "video"
    #: whether it writes EXR frames beside the video, whatever `hdr` says
    makes_exr: ClassVar[bool] = False
    #: whether `num_frames` need not be `8k+1`: the last frame is repeated, and cut off in the end
    any_length: ClassVar[bool] = False
    #: whether it cannot do without a prompt
    needs_prompt: ClassVar[bool] = True
    #: whether its last stages work on parts of the clip
    in_tiles: ClassVar[bool] = False

    def prompts(self, request: Request) -> list[str]:
        """Texts that a prepared request has encoded; the first one describes the clip."""
        return [request.config.prompt]

    @classmethod
    def refusal(cls, problems: Sequence[str]) -> OptionError:
        """The error of a request that this pipeline cannot do."""
        return OptionError(f"the {cls.name} pipeline cannot generate", problems)

    @classmethod
    def problems(cls, request: Request) -> list[str]:
        """What is wrong with a request, as far as one can say without a bundle."""
        config = request.config
        problems: list[str] = []
        if cls.needs_prompt and not config.prompt.strip() and config.embeddings is None:
            problems.append("the prompt is empty; describe the clip in a sentence")
        problems += [
            _no_use(f"config.{name}")
            for name in GIVEN_FIELDS
            if name in cls.unused and getattr(config, name)
        ]
        if not config.with_audio and "with_audio" in cls.unused:
            problems.append(_no_use("config.with_audio"))
        chosen = isinstance(config.num_frames, AutoDuration) and config.audio is None
        if chosen and not cls.auto_duration:
            problems.append(
                Problem("it cannot choose its duration; give ", Field("num_frames"), " as a number")
            )
        return problems + stage_option_problems(
            config, cls.name, guided=cls.guided, two_stage=cls.two_stage
        )

    @classmethod
    def takes(cls, place: str) -> bool:
        """Whether a field means something here.

        Args:
            place: of the field in a request: `config.height`, `inputs.video`,
                `guidance.video.cfg_scale`.
        """
        part, _, name = place.partition(".")
        if part == "inputs":
            return name.partition(".")[0] in field_names(cls.Inputs)
        if part == "guidance":
            return cls.guided
        for_two = name.startswith("stage_2_") or name == "latents"
        return name not in cls.unused and (cls.two_stage or not for_two)

    @classmethod
    def named_problems(cls, places: Iterable[str]) -> list[str]:
        """What is wrong with naming these fields, whatever their values; places as for `takes`."""
        problems: list[str] = []
        for place in places:
            part, _, name = place.partition(".")
            if part == "guidance" and not cls.guided:
                problems.append(Problem("it has no use for ", Field(place), ": it is not guided"))
            elif part == "inputs" and not cls.takes(place):
                others = [n for n in PIPELINES if catalog_class(n).takes(place)]
                problems.append(Problem(_no_use(place), f", which is for {' and '.join(others)}"))
            elif part == "config" and name in cls.unused:
                problems.append(_no_use(place))
        return problems

    @classmethod
    def defaults(cls, inputs: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a `GenerationConfig` where none are asked for; those left out have the same
        default everywhere.

        Args:
            inputs: None where something is missing in them.
            given: the fields that are asked for.
        """
        found: dict[str, Any] = dict(zip(("height", "width"), cls.default_size or (), strict=False))
        if given.get("audio") is not None:  # the clip is as long as its sound
            found["num_frames"] = AutoDuration()
        return {**found, **_size_of_neighbour(given), **_size_of_latents(given)}

    @classmethod
    def command_defaults(cls, has: Callable[..., bool]) -> dict[str, Any]:
        """Fields of a `GenerationConfig` that the command line fills in otherwise than `defaults`,
        as the official command does, for a bundle that `has` these components.
        """
        if cls.auto_duration and has(DURATION_HEAD):
            return {"num_frames": AutoDuration()}
        return {}

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """What a clip of these `Inputs` can be saved as, its main kind first.

        Raises:
            MediaError: a file that decides this cannot be read.
        """
        return ("video", "audio") if cls.makes == "video" else ("audio",)

    @classmethod
    def required_inputs(cls) -> list[str]:
        """The fields of `Inputs` that have no default."""
        absent = dataclasses.MISSING
        fields = dataclasses.fields(cls.Inputs) if cls.Inputs else ()
        return [f.name for f in fields if f.default is absent and f.default_factory is absent]

    @classmethod
    def missing_inputs(cls, given: Iterable[str]) -> list[str]:
        """One problem for every required field of `Inputs` that is not among these."""
        known = {*given}
        lacks = [name for name in cls.required_inputs() if name not in known]
        return [Problem("it needs ", Field(f"inputs.{name}")) for name in lacks]

    @classmethod
    def missing(cls, has: Callable[..., bool]) -> list[str]:
        """Components this pipeline needs that a source with this `has` does not hold."""
        missing = [c for c in cls.requires if not has(c)]
        if has(*DIFFUSION_DECODER):
            missing = [c for c in missing if c != VIDEO_DECODER]
        return missing


def _size_of_neighbour(given: Mapping[str, Any]) -> dict[str, Any]:
    """Height, width and frame rate of the clip that this one goes on from; `prepare` refuses one
    that cannot be read.
    """
    for clip in (given.get("after"), given.get("before")):
        path = clip.get("path") if isinstance(clip, Mapping) else getattr(clip, "path", None)
        if path is None:
            continue
        try:
            info = probe_video(path)
        except MediaError:
            return {}
        sides = {"height": info.height - info.height % 2, "width": info.width - info.width % 2}
        return {**sides, "frame_rate": float(info.frame_rate)}
    return {}


def _size_of_latents(given: Mapping[str, Any]) -> dict[str, Any]:
    """Size, frames and frame rate of the clip whose first stage is taken over; `prepare` refuses a
    file that cannot be read.
    """
    if given.get("latents") is None:
        return {}
    try:
        config = record_of_latents(given["latents"]).request.config
    except Ltx2rtError:
        return {}
    return {n: getattr(config, n) for n in ("height", "width", "num_frames", "frame_rate")}


def field_names(kind: type[Any] | None) -> set[str]:
    """Fields of a dataclass."""
    return set() if kind is None else {f.name for f in dataclasses.fields(kind)}


def _no_use(place: str) -> Problem:
    return Problem("it has no use for ", Field(place))
