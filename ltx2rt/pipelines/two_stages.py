"""Two-stage generation: guided at half size, upsampled, refined with a distilled LoRA
(spec/pipelines.md §2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ltx2rt.components.diffusion_stage import run_stage, run_stage_with_keyframes
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.engine import Array
from ltx2rt.manifest import Lora
from ltx2rt.noise import TorchGenerator
from ltx2rt.pipelines.base import TRANSFORMER
from ltx2rt.pipelines.clip import Clip
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.progress import Job
from ltx2rt.schedules import STAGE2_DISTILLED


class TwoStagesPipeline(GuidedPipeline):
    """Prompt (and images) to a clip with sound. The variants below differ in what these class
    attributes and `stage_loras` say.
    """

    name: ClassVar[str] = "two-stage"
    requires: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        *TRANSFORMER,
        "spatial_upsampler",
        "video_decoder",
        "audio_decoder",
        "vocoder",
    )
    two_stage: ClassVar[bool] = True
    sampler: ClassVar[Literal["euler", "res_2s"]] = "euler"
    #: attach every image as a keyframe, also one at frame 0
    guiding_images: ClassVar[bool] = False
    #: the stage whose sound is shipped
    audio_stage: ClassVar[str] = "stage_1"

    def stage_loras(
        self, config: GenerationConfig, guidance: GuidanceConfig
    ) -> list[tuple[Lora, ...]]:
        """The user's LoRAs; stage 2 adds the distilled one."""
        assert guidance.distilled_lora is not None
        return [config.loras, (*config.loras, guidance.distilled_lora)]

    def stage_1_sigmas(self, config: GenerationConfig, guidance: GuidanceConfig) -> Sequence[float]:
        """The schedule of stage 1; it does not depend on the resolution."""
        return self.sigmas(guidance)

    def __call__(
        self,
        config: GenerationConfig | None = None,
        guidance: GuidanceConfig | None = None,
        *,
        job: Job | None = None,
        trace: StageTrace | None = None,
        **options: Any,
    ) -> Clip:
        """Generate one clip; arguments and errors as `OneStagePipeline`."""
        config, guidance = self.prepare(config, guidance, options)
        job = job or Job()
        loras = self.stage_loras(config, guidance)
        keyframes = self.keyframe_items(config)
        items = self.image_items(
            config, {"stage_1": 2, "stage_2": 1}, job, guiding=self.guiding_images
        )
        context, guides = self.guided_context(config, guidance, job, trace)
        generator = TorchGenerator(config.seed)
        first = self.stage(
            config,
            "stage_1",
            2,
            sigmas=self.stage_1_sigmas(config, guidance),
            items=[*items["stage_1"], *keyframes],
            sampler=self.sampler,
        )
        video, audio, made = run_stage_with_keyframes(
            first, self.transformer(loras[0]), context, generator, job, trace, guides
        )
        latents: dict[str, Array] = {"stage_1.video": video, "stage_1.audio": audio}
        if made is not None:
            latents["stage_1.keyframes"] = made
        latents["upsampled.video"] = self.upsample(video, job)
        second = self.stage(
            config,
            "stage_2",
            1,
            sigmas=STAGE2_DISTILLED,
            items=items["stage_2"],
            video_initial=latents["upsampled.video"],
            audio_initial=audio,
            noise_scale=STAGE2_DISTILLED[0],
            sampler=self.sampler,
        )
        video, audio = run_stage(second, self.transformer(loras[1]), context, generator, job, trace)
        self.release(*TRANSFORMER)
        latents.update({"stage_2.video": video, "stage_2.audio": audio})
        return Clip(
            pipeline=self,
            config=config,
            guidance=guidance,
            job=job,
            latents=latents,
            video_latent=video,
            generator=generator,
            audio_latent=latents[f"{self.audio_stage}.audio"],
        )
