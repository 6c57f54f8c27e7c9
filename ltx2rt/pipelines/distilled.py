"""Distilled two-stage generation: half size in 8 steps, latent upsampling, refinement in 3
(spec/pipelines.md §4).
"""

from __future__ import annotations

from typing import Any, ClassVar

from ltx2rt.components.diffusion_stage import (
    ANCESTRAL_SEED_OFFSET,
    StageRequest,
    StageTrace,
    run_stage,
)
from ltx2rt.components.image_conditioner import image_items
from ltx2rt.components.prompt_encoder import TextContext
from ltx2rt.conditioning import ConditioningItem
from ltx2rt.config import GenerationConfig
from ltx2rt.engine import Array
from ltx2rt.noise import TorchGenerator
from ltx2rt.pipelines.base import TRANSFORMER, Pipeline
from ltx2rt.pipelines.clip import Clip
from ltx2rt.progress import Job
from ltx2rt.schedules import DISTILLED, STAGE2_DISTILLED
from ltx2rt.shapes import (
    AudioLatentShape,
    VideoLatentShape,
    VideoPixelShape,
    check_generation_size,
)


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
        config = config or GenerationConfig(**options)
        job = job or Job()
        check_generation_size(
            config.height, config.width, config.num_frames, True, self.scale_factors
        )
        items = {
            stage: self._items(config, config.height // part, config.width // part, stage, job)
            for stage, part in (("stage_1", 2), ("stage_2", 1))
        }
        self.release("video_encoder")
        context = self._encode(config.prompt, job)
        if trace is not None:
            trace.tensors.update({"context.video": context.video, "context.audio": context.audio})
        generator = TorchGenerator(config.seed)
        latents: dict[str, Array] = {}
        sampler = self.source.model.distilled_sampler
        first = self._request(
            config,
            2,
            name="stage_1",
            sigmas=DISTILLED,
            items=items["stage_1"],
            ancestral_seed=(
                config.seed + ANCESTRAL_SEED_OFFSET if sampler == "euler_ancestral" else None
            ),
        )
        video, audio = run_stage(first, self.transformer(), context, generator, job, trace)
        latents.update({"stage_1.video": video, "stage_1.audio": audio})
        job.report("upsample", 0, 1)
        upsampled = self.spatial_upsampler()(video)
        self.release("spatial_upsampler")
        latents["upsampled.video"] = upsampled
        job.report("upsample", 1, 1)
        second = self._request(
            config,
            1,
            name="stage_2",
            sigmas=STAGE2_DISTILLED,
            items=items["stage_2"],
            video_initial=upsampled,
            audio_initial=audio,
            noise_scale=STAGE2_DISTILLED[0],
        )
        video, audio = run_stage(second, self.transformer(), context, generator, job, trace)
        self.release(*TRANSFORMER)
        latents.update({"stage_2.video": video, "stage_2.audio": audio})
        return Clip(
            pipeline=self,
            config=config,
            job=job,
            latents=latents,
            video_latent=video,
            audio_latent=audio,
        )

    def _encode(self, prompt: str, job: Job) -> TextContext:
        job.report("prompt", 0, 1)
        context = self.prompt_encoder()([prompt])
        self.release("text_encoder")
        job.report("prompt", 1, 1)
        return context

    def _items(
        self, config: GenerationConfig, height: int, width: int, stage: str, job: Job
    ) -> list[ConditioningItem]:
        if not config.images:
            return []
        job.report(f"images {stage}", 0, 1)
        crf = self.source.model.image_crf
        items = image_items(config.images, self.video_encoder(), height, width, crf)
        job.report(f"images {stage}", 1, 1)
        return items

    def _request(self, config: GenerationConfig, divisor: int, **stage: Any) -> StageRequest:
        model = self.source.model
        pixels = VideoPixelShape(
            num_frames=config.num_frames,
            height=config.height // divisor,
            width=config.width // divisor,
            frame_rate=config.frame_rate,
        )
        return StageRequest(
            pixels=pixels,
            video_shape=VideoLatentShape.from_pixel_shape(
                pixels, model.latent_channels, self.scale_factors
            ),
            audio_shape=AudioLatentShape.from_duration(
                pixels.duration_s, channels=model.audio_channels, mel_bins=model.audio_bins
            ),
            scale_factors=self.scale_factors,
            **stage,
        )
