"""A clip that follows reference videos, or a voice, in the way a LoRA was trained to
(spec/pipelines.md §5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ltx2rt.components.reference_conditioner import (
    ReferenceFile,
    check_mask,
    load_mask,
    mask_problems,
    reference_problems,
)
from ltx2rt.errors import Field, MediaError, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.latents.conditioning import ReferenceAudio
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.metadata import reference_downscale_problems, reference_factors
from ltx2rt.media.sound import probe_audio
from ltx2rt.names import AUDIO_ENCODER, TWO_STAGE, VIDEO_ENCODER
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.inputs import (
    encode_sound,
    image_items,
    read_sound,
    reference_items,
)
from ltx2rt.pipelines.options import ICLoraCalls
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.soundtrack import given_audio
from ltx2rt.results.clip import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class ICLoraInputs:
    """What the IC-LoRA pipeline takes besides `GenerationConfig`.

    Attributes:
        references: the videos to follow.
        reference_audio: a sound or video file whose voice speaks in the clip, for a LoRA trained
            to keep a speaker (an ID-LoRA). It is shown before the start of the clip
            (spec/conditioning.md §2.4).
        identity_guidance: how much nearer the voice comes to the reference, at one more pass a
            step; 0 for none, 3 is what others use.
        attention_strength: how much the clip and the references attend to each other, 0 to 1.
        attention_mask: a video or image: white where clip and references attend to each other,
            black where they do not.
        skip_stage_2: stop after stage 1, at half the height and width; ic-lora-guided: at all of
            it, which takes as many steps as stage 1 has.
        reference_downscale: how much smaller than the clip the LoRA wants its reference, for files
            that do not say it; by default what the file says, else 1.
    """

    references: tuple[ReferenceFile, ...] = ()
    reference_audio: Path | None = None
    identity_guidance: float = 0.0
    attention_strength: float = 1.0
    attention_mask: Path | None = None
    skip_stage_2: bool = False
    reference_downscale: int | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems = reference_downscale_problems(self.reference_downscale)
        if not self.references and self.reference_audio is None:
            problems.append(
                Problem(
                    "it needs at least one reference video (",
                    Field("references"),
                    ") or a voice (",
                    Field("reference_audio"),
                    ")",
                )
            )
        scale = self.identity_guidance
        if not (math.isfinite(scale) and scale >= 0):
            problems.append(Problem(Field("identity_guidance"), f"={scale} is not 0 or more"))
        elif scale and self.reference_audio is None:
            problems.append(
                Problem(
                    Field("identity_guidance"), " means nothing without ", Field("reference_audio")
                )
            )
        if not self.references:
            given = {
                "attention_mask": self.attention_mask is not None,
                "attention_strength": self.attention_strength != 1,
            }
            problems += [
                Problem(Field(n), " means nothing without a reference video")
                for n in given
                if given[n]
            ]
        if not 0.0 <= self.attention_strength <= 1.0:
            problems.append(
                Problem(Field("attention_strength"), f"={self.attention_strength} is not in [0, 1]")
            )
        if problems:
            raise OptionError("the ic-lora pipeline cannot generate", problems)


class ICLoraPipeline(ICLoraCalls[ICLoraInputs], GuidedPipeline):
    """Prompt, reference videos or a voice (and images) to a clip with sound, with a distilled model
    and IC-LoRAs. Their metadata says how much smaller and slower the references are shown. Stage 2
    works without any LoRA and without the references; with a reference voice it leaves the sound
    of stage 1 alone, as Dub-It does: without the LoRA it would speak with another one.
    """

    name: ClassVar[str] = "ic-lora"
    summary: ClassVar[str] = (
        "A clip that follows reference videos (depth, pose, ...) or a voice, by an IC-LoRA."
    )
    guided: ClassVar[bool] = False
    counterpart: ClassVar[str | None] = "ic-lora-guided"
    requires: ClassVar[tuple[str, ...]] = (*TWO_STAGE, VIDEO_ENCODER)
    two_stage: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("generated_keyframes", "stage_2_loras")
    Inputs: ClassVar[type[Any]] = ICLoraInputs

    def prepare(self, request: Request) -> Request:
        """As `GuidedPipeline.prepare`.

        Raises:
            OptionError: references or the mask cannot be read, LoRAs contradict each other, the
                size does not suit them (all problems are named), the mask does not fit them in
                time, or the bundle has no audio encoder for a voice.
            MediaError: the reference sound cannot be read, or the mask is a folder.
        """
        request = super().prepare(request)
        inputs: ICLoraInputs = request.inputs
        if inputs.reference_audio is not None:
            if not self.source.has(AUDIO_ENCODER):
                raise OptionError(
                    Problem(
                        "a reference voice needs the audio encoder, which this bundle leaves out; "
                        "build it with all components, or leave out ",
                        Field("reference_audio"),
                    )
                )
            probe_audio(inputs.reference_audio)
        config = request.config
        if inputs.reference_audio is not None and not config.with_audio:
            raise self.refusal(
                [Problem(Field("reference_audio"), " is a voice for a clip that shall have none")]
            )
        if inputs.reference_audio is not None and config.audio is not None:
            raise self.refusal(
                [
                    Problem(
                        Field("reference_audio"),
                        " is a voice for new sound, ",
                        Field("config.audio"),
                        " is the sound itself: give one of them",
                    )
                ]
            )
        _, temporal_scale = factors(config.loras, inputs)
        problems = reference_problems(reference.path for reference in inputs.references)
        try:
            if inputs.attention_mask is not None:
                check_mask(inputs.attention_mask)
        except MediaError as error:
            problems += error.problems
        if inputs.attention_mask is not None and not problems:
            problems += mask_problems(
                inputs.attention_mask,
                inputs.references,
                config.frame_count,
                config.frame_rate,
                temporal_scale=temporal_scale,
                latent_step=self.scale_factors.time,
            )
        problems += [
            Problem(Field(name), " means nothing where stage 2 is skipped")
            for name in ("stage_2_sampler", "stage_2_sigmas")
            if inputs.skip_stage_2 and getattr(config, name) is not None
        ]
        if problems:
            raise self.refusal(problems)
        return request

    def size_multiple(self, request: Request) -> int:
        """Also of the references, at the size that the LoRAs want."""
        downscale, _ = factors(request.config.loras, request.inputs)
        return super().size_multiple(request) * downscale

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """The user's; stage 2 works without any."""
        return [request.config.loras, ()]

    def generate(self, run: Run) -> Clip:
        inputs: ICLoraInputs = run.request.inputs
        loras = self.stage_loras(run.request)
        downscale, temporal_scale = factors(run.config.loras, inputs)
        divisor = 1 if self.guided and inputs.skip_stage_2 else 2
        stages = {"stage_1": divisor} if inputs.skip_stage_2 else {"stage_1": divisor, "stage_2": 1}
        items = image_items(run, stages)
        mask = inputs.attention_mask
        references = reference_items(
            run,
            "stage_1",
            inputs.references,
            divisor,
            downscale=downscale,
            temporal_scale=temporal_scale,
            attention_strength=inputs.attention_strength,
            attention_mask=None
            if mask is None
            else load_mask(mask, run.pixels(divisor), run.shown(divisor)),
        )
        audio = given_audio(run)
        voice = []
        if inputs.reference_audio is not None:
            sound = encode_sound(run, read_sound(inputs.reference_audio))
            voice.append(ReferenceAudio.before_start(sound))
        context, guidance = self.encode(run)
        first = run.stage(
            "stage_1",
            self.stage_1_sigmas(run),
            context,
            loras[0],
            video=run.video(divisor, items=[*items["stage_1"], *references]),
            audio=audio or run.audio(items=voice),
            overrides=run.stage_1_overrides,
            guidance=guidance,
            identity=inputs.identity_guidance,
        )
        if inputs.skip_stage_2:
            return self.clip(run, first.video, first.audio)
        if voice:
            audio = run.audio(initial=first.audio, noise_scale=0.0, frozen=True)
        second = run.refine(first, context, loras[1], video_items=items["stage_2"], audio=audio)
        return self.clip(run, second.video, first.audio if voice else second.audio)


class GuidedICLoraPipeline(ICLoraPipeline):
    """As `ICLoraPipeline`, with guidance: for IC-LoRAs on a model that is not distilled. Stage 2
    has the distilled LoRA and those of `stage_2_loras`, which may repeat some of stage 1.
    """

    name: ClassVar[str] = "ic-lora-guided"
    summary: ClassVar[str] = "As ic-lora, with guidance: for a model that is not distilled."
    guided: ClassVar[bool] = True
    counterpart: ClassVar[str | None] = "ic-lora"
    unused: ClassVar[tuple[str, ...]] = ("generated_keyframes",)

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """The user's of each stage; stage 2 adds the distilled one."""
        assert request.guidance is not None
        config, distilled = request.config, request.guidance.distilled_lora
        return [config.loras, (*(config.stage_2_loras or ()), *((distilled,) if distilled else ()))]


def factors(loras: tuple[Lora, ...], inputs: ICLoraInputs) -> tuple[int, int]:
    """How much smaller and slower than the clip these LoRAs want their references.

    Raises:
        OptionError: they want different ones.
        CheckpointError: a file cannot be read.
    """
    files = [open_lora(lora.path) for lora in loras]
    return reference_factors(files, inputs.reference_downscale)
