"""A clip that says something else (spec/pipelines.md §10)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.errors import Field, MediaError, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.latents.conditioning import ReferenceAudio
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.lora.files import open_lora
from ltx2rt.lora.metadata import reference_downscale_problems, reference_factors
from ltx2rt.media.reader import probe_video
from ltx2rt.names import AUDIO_ENCODER, TWO_STAGE, VIDEO_ENCODER
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.facts import MEDIA_FIELDS
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import (
    encode_prompts,
    encode_sound,
    image_items,
    read_sound,
    reference_items,
)
from ltx2rt.pipelines.options import DubItCalls
from ltx2rt.pipelines.request import Request
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.schedules import DISTILLED


@dataclass(frozen=True, slots=True, kw_only=True)
class DubItInputs:
    """The clip to dub.

    Attributes:
        reference_video: picture and voice to follow; it gives frames (cut to `8k+1`) and frame
            rate.
        reference_strength: how strictly the picture follows it, 0 to 1.
        reference_downscale: how much smaller than the clip the LoRA wants its reference, for files
            that do not say it; by default what the file says, else 1.
    """

    reference_video: Path
    reference_strength: float = 1.0
    reference_downscale: int | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        if problems := reference_downscale_problems(self.reference_downscale):
            raise OptionError("the dub-it pipeline cannot generate", problems)
        self.reference  # noqa: B018 (checks the strength)

    @property
    def reference(self) -> ReferenceFile:
        """The picture, as every reference video is given."""
        return ReferenceFile(path=self.reference_video, strength=self.reference_strength)


class DubItPipeline(DubItCalls[DubItInputs], Pipeline):
    """Make a clip anew that follows a clip and its voice, with a distilled model and an IC-LoRA
    (and what other LoRAs are named) in both stages. Stage 1 speaks; stage 2 sees its sound and
    refines the picture.
    """

    name: ClassVar[str] = "dub-it"
    summary: ClassVar[str] = (
        "A clip that follows another one and its voice but says something else; needs an IC-LoRA."
    )
    requires: ClassVar[tuple[str, ...]] = (*TWO_STAGE, VIDEO_ENCODER, AUDIO_ENCODER)
    two_stage: ClassVar[bool] = True
    Inputs: ClassVar[type[Any] | None] = DubItInputs
    unused: ClassVar[tuple[str, ...]] = (
        "num_frames", "frame_rate", "generated_keyframes", "hdr", "stage_2_loras", *MEDIA_FIELDS,
    )  # fmt: skip

    @classmethod
    def problems(cls, request: Request) -> list[str]:
        """Also that no LoRA is named."""
        problems = super().problems(request)
        if not request.config.loras:
            problems.append(Problem("it needs an IC-LoRA for dubbing (", Field("loras"), ")"))
        return problems

    def prepare(self, request: Request) -> Request:
        """As `Pipeline.prepare`, with the reference's frames and frame rate.

        Raises:
            MediaError: the reference cannot be read, or is silent.
            OptionError: no LoRA, LoRAs that want different references, or a size that the reference
                does not divide.
            CheckpointError: the LoRA cannot be read.
        """
        own: DubItInputs = request.inputs
        info = probe_video(own.reference_video)
        if not info.has_audio:
            raise MediaError(
                f"'{own.reference_video}' has no audio stream; the {self.name} pipeline needs the "
                "voice of its reference."
            )
        time = self.scale_factors.time
        config = replace(
            request.config,
            num_frames=(info.num_frames - 1) // time * time + 1,
            frame_rate=float(info.frame_rate),
        )
        return super().prepare(replace(request, config=config))

    def size_multiple(self, request: Request) -> int:
        """Also of the reference, at the size that the LoRA wants."""
        return super().size_multiple(request) * _downscale(request)

    def generate(self, run: Run) -> Clip:
        own: DubItInputs = run.request.inputs
        loras = run.config.loras
        stages = {"stage_1": 2, "stage_2": 1}
        images = image_items(run, stages)
        references = {
            stage: reference_items(
                run,
                stage,
                [own.reference],
                divisor,
                downscale=_downscale(run.request),
                tiling=TilingConfig.default(),
            )
            for stage, divisor in stages.items()
        }
        voice = encode_sound(run, read_sound(own.reference_video))
        context = encode_prompts(run, [run.config.prompt])
        first = run.stage(
            "stage_1",
            DISTILLED,
            context,
            loras,
            video=run.video(2, items=[*images["stage_1"], *references["stage_1"]]),
            audio=run.audio(items=[ReferenceAudio.before_start(voice)]),
            overrides=run.stage_1_overrides,
        )
        assert first.audio is not None
        second = run.refine(
            first,
            context,
            loras,
            video_items=[*images["stage_2"], *references["stage_2"]],
            audio=run.audio(
                initial=first.audio,
                noise_scale=0.0,
                frozen=True,
                items=[ReferenceAudio.before_start(first.audio)],
            ),
        )
        return self.clip(run, second.video, first.audio)


def _downscale(request: Request) -> int:
    """How much smaller than the clip the LoRAs want the reference; that they may want it slower too
    means nothing here.
    """
    files = [open_lora(lora.path) for lora in request.config.loras]
    return reference_factors(files, request.inputs.reference_downscale)[0]
