"""Two-stage generation: guided at half size, upsampled, refined with a distilled LoRA
(spec/pipelines.md §2).
"""

from __future__ import annotations

from typing import ClassVar

from ltx2rt.lora.files import Lora
from ltx2rt.names import TWO_STAGE
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.guided import GuidedPipeline, with_distilled_lora
from ltx2rt.pipelines.inputs import image_items, keyframe_items
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.soundtrack import given_audio
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.samplers import Sampler


class TwoStagesPipeline(GuidedPipeline):
    """Prompt (and images) to a clip with sound. The variants below differ in what these class
    attributes and `stage_loras` say. With a distilled model, and without a distilled LoRA, stage 1
    takes the distilled noise levels and no guidance, unless they are asked for.
    """

    name: ClassVar[str] = "two-stage"
    summary: ClassVar[str] = (
        "Prompt (and images) to a clip with sound: "
        "guided at half size, refined with a distilled LoRA."
    )
    requires: ClassVar[tuple[str, ...]] = TWO_STAGE
    two_stage: ClassVar[bool] = True
    auto_duration: ClassVar[bool] = True
    sampler: ClassVar[Sampler] = "euler"
    #: attach every image as a keyframe, also one at frame 0
    guiding_images: ClassVar[bool] = False
    #: the stage whose sound is shipped
    audio_stage: ClassVar[str] = "stage_1"

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """The user's LoRAs; stage 2 adds the distilled one."""
        return with_distilled_lora(request)

    def generate(self, run: Run) -> Clip:
        loras = self.stage_loras(run.request)
        audio = given_audio(run)
        items = image_items(run, {"stage_1": 2, "stage_2": 1}, guiding=self.guiding_images)
        context, guidance = self.encode(run)
        keyframes = keyframe_items(run)
        first = run.stage(
            "stage_1",
            self.stage_1_sigmas(run),
            context,
            loras[0],
            video=run.video(2, items=[*items["stage_1"], *keyframes]),
            audio=audio or run.audio(),
            overrides=run.stage_1_overrides,
            guidance=guidance,
            sampler=self.sampler,
        )
        second = run.refine(
            first,
            context,
            loras[1],
            video_items=items["stage_2"],
            audio=audio,
            sampler=self.sampler,
        )
        return self.clip(run, second.video, run.latents.get(f"{self.audio_stage}.audio"))
