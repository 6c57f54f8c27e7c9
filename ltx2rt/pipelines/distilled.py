"""Distilled two-stage generation: half size in 8 steps, latent upsampling, refinement in 3
(spec/pipelines.md §4).
"""

from __future__ import annotations

from typing import Any, ClassVar

from ltx2rt.components.diffusion_stage import (
    ANCESTRAL_SEED_OFFSET,
    run_stage,
    run_stage_with_keyframes,
)
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig
from ltx2rt.engine import Array
from ltx2rt.noise import TorchGenerator
from ltx2rt.pipelines.base import TRANSFORMER, Pipeline
from ltx2rt.pipelines.clip import Clip
from ltx2rt.progress import Job
from ltx2rt.schedules import DISTILLED, STAGE2_DISTILLED
from ltx2rt.shapes import check_generation_size


class DistilledPipeline(Pipeline):
    """Prompt (and images) to a clip with sound, with a distilled model."""

    name: ClassVar[str] = "distilled"
    requires: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        *TRANSFORMER,
        "spatial_upsampler",
        "video_decoder",
        "audio_decoder",
        "vocoder",
    )

    def __call__(
        self,
        config: GenerationConfig | None = None,
        *,
        job: Job | None = None,
        trace: StageTrace | None = None,
        **options: Any,
    ) -> Clip:
        """Generate one clip.

        Args:
            config: what to make; or pass its fields by keyword: `pipe(prompt="...", seed=42)`.
            job: progress, cancelling and timings.
            trace: collects intermediate tensors (parity tests).

        Returns:
            A clip whose latents are done; frames and sound are decoded when asked for.

        Raises:
            ShapeError: height or width is not a multiple of 64, or num_frames not 8k+1.
            OptionError: another option is not allowed.
        """
        config = config or self.make_config(options)
        job = job or Job()
        check_generation_size(
            config.height, config.width, config.num_frames, True, self.scale_factors
        )
        self.check_loras(config.loras)
        keyframes = self.keyframe_items(config)
        items = self.image_items(config, {"stage_1": 2, "stage_2": 1}, job)
        context = self.encode([config.prompt], job)
        if trace is not None:
            trace.tensors.update({"context.video": context.video, "context.audio": context.audio})
        generator = TorchGenerator(config.seed)
        first = self.stage(
            config,
            "stage_1",
            2,
            sigmas=DISTILLED,
            items=[*items["stage_1"], *keyframes],
            sampler=self.source.model.distilled_sampler,
            ancestral_seed=config.seed + ANCESTRAL_SEED_OFFSET,
        )
        transformer = self.transformer(config.loras)
        video, audio, made = run_stage_with_keyframes(
            first, transformer, context, generator, job, trace
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
        )
        video, audio = run_stage(second, transformer, context, generator, job, trace)
        self.release(*TRANSFORMER)
        latents.update({"stage_2.video": video, "stage_2.audio": audio})
        return Clip(
            pipeline=self,
            config=config,
            job=job,
            latents=latents,
            video_latent=video,
            generator=generator,
            audio_latent=audio,
        )
