"""What a pipeline is, before there is a bundle: what it takes, needs and refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.media.files import OutputKind
from ltx2rt.names import DIFFUSION_DECODER, DURATION_HEAD, VIDEO_DECODER
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from ltx2rt.pipelines.checks import stage_option_problems
from ltx2rt.pipelines.request import Request


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
    #: whether it cannot do without a prompt
    needs_prompt: ClassVar[bool] = True
    #: whether height and width need not be multiples of the model's factor
    any_size: ClassVar[bool] = False
    #: whether its last stages work on parts of the clip
    in_tiles: ClassVar[bool] = False

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
            for name in ("images", "generated_keyframes", "hdr", "stage_2_loras")
            if name in cls.unused and getattr(config, name)
        ]
        if isinstance(config.num_frames, AutoDuration) and not cls.auto_duration:
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
            place: of the field in a request: `config.height`, `inputs.audio`,
                `guidance.video.cfg_scale`.
        """
        part, _, name = place.partition(".")
        if part == "inputs":
            return name.partition(".")[0] in field_names(cls.Inputs)
        if part == "guidance":
            return cls.guided
        return name not in cls.unused and (cls.two_stage or not name.startswith("stage_2_"))

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
    def defaults(cls, inputs: Any) -> dict[str, Any]:
        """Fields of a `GenerationConfig` where none are asked for; those left out have the same
        default everywhere. `inputs` is None where something is missing in them.
        """
        return dict(zip(("height", "width"), cls.default_size or (), strict=False))

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


def field_names(kind: type[Any] | None) -> set[str]:
    """Fields of a dataclass."""
    return set() if kind is None else {f.name for f in dataclasses.fields(kind)}


def _no_use(place: str) -> Problem:
    return Problem("it has no use for ", Field(place))
