"""A retake in two stages: made at half size, upsampled, and refined where it was made."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ltx2rt.components.diffusion_stage import ModalityRequest, StageResult
from ltx2rt.errors import Field, Problem
from ltx2rt.latents.shapes import AudioLatentShape
from ltx2rt.lora.files import Lora
from ltx2rt.names import AUDIO_ENCODER, TWO_STAGE, VIDEO_ENCODER
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.guided import with_distilled_lora
from ltx2rt.pipelines.inputs import image_items
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.retake import RetakePipeline
from ltx2rt.pipelines.retake_source import (
    audio_target,
    kept_sound,
    refined,
    video_target,
)
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.schedules import STAGE2_DISTILLED, begun_at


class TwoStageRetakePipeline(RetakePipeline):
    """As `RetakePipeline`, for large clips: made anew at half height and width, upsampled, and
    refined at the source's size, there alone where it was made. A source needs a picture that is
    made anew: where it is kept, there is nothing to refine.

    ```python
    with ltx2rt.TwoStageRetakePipeline(bundle) as pipe:
        clip = pipe(prompt="It begins to snow.", video="in.mp4", start_time=0.1, end_time=0.3)
        clip.save("out.mp4")
    ```
    """

    name: ClassVar[str] = "retake-two-stage"
    summary: ClassVar[str] = (
        "As retake, for large clips: made at half size, and refined where it was made."
    )
    counterpart: ClassVar[str | None] = "retake-two-stage-guided"
    requires: ClassVar[tuple[str, ...]] = (*TWO_STAGE, VIDEO_ENCODER, AUDIO_ENCODER)
    two_stage: ClassVar[bool] = True
    #: the stage whose sound is shipped
    audio_stage: ClassVar[str] = "stage_2"

    @classmethod
    def problems(cls, request: Request) -> list[str]:
        """Also a picture that is kept."""
        problems = super().problems(request)
        if not request.inputs.windows("video"):
            problems.append(
                Problem(
                    "it refines a picture, and this one is kept (",
                    Field("inputs.regenerate_video"),
                    "): use a retake of one stage",
                )
            )
        return problems

    def generate(self, run: Run) -> Clip:
        strength = run.request.inputs.denoise_strength
        loras = self.stage_loras(run.request)
        images = image_items(run, {"stage_1": 2, "stage_2": 1})
        kept = {"frozen": True, "noise_scale": self.kept_noise_scale}
        half = video_target(run, kept, images["stage_1"], 2)
        full = video_target(run, kept, images["stage_2"])
        audio = audio_target(run, kept)
        encoded = self.encode(run)
        first = self.first_stage(run, encoded, video=half, audio=audio, strength=strength)
        scale = begun_at(strength, STAGE2_DISTILLED)[0]
        video = refined(run, full, run.upsample(first.video), scale)
        assert video.initial is not None
        second = run.refine(
            first,
            encoded[0],
            loras[1],
            video=video.initial,
            video_items=video.items,
            audio=self._sound_of_stage_2(run, audio, first, scale),
            strength=strength,
        )
        made = run.latents.get(f"{self.audio_stage}.audio")
        return self.clip(run, second.video, made, waveform=kept_sound(run))

    def _sound_of_stage_2(
        self,
        run: Run,
        audio: ModalityRequest[AudioLatentShape] | None,
        first: StageResult,
        scale: float,
    ) -> ModalityRequest[AudioLatentShape] | None:
        """Kept sound stays, and so does that of tiles; other sound is refined where it was made."""
        if audio is None or first.audio is None or audio.frozen:
            return audio
        if run.config.stage_2_tile is not None:
            return replace(audio, initial=first.audio, items=(), noise_scale=0.0, frozen=True)
        if audio.initial is None:
            return replace(audio, initial=first.audio, noise_scale=scale)
        return refined(run, audio, first.audio, scale)


class GuidedTwoStageRetakePipeline(TwoStageRetakePipeline):
    """As `TwoStageRetakePipeline`, with guidance: for a model that is not distilled. Stage 2 has
    the distilled LoRA; the sound is that of stage 1.
    """

    name: ClassVar[str] = "retake-two-stage-guided"
    summary: ClassVar[str] = (
        "As retake-two-stage, with guidance: for a model that is not distilled."
    )
    guided: ClassVar[bool] = True
    counterpart: ClassVar[str | None] = "retake-two-stage"
    audio_stage: ClassVar[str] = "stage_1"

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """The user's of each stage; stage 2 adds the distilled one."""
        return with_distilled_lora(request)
