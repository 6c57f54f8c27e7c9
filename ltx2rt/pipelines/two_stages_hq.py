"""Two-stage generation with the second-order sampler in both stages (spec/pipelines.md §3).

Latents stay float32 between steps; upstream rounds them to bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ltx2rt.config import DISTILLED_STRENGTHS, GuidanceConfig
from ltx2rt.latents.shapes import VideoLatentShape, VideoPixelShape
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.two_stages import TwoStagesPipeline
from ltx2rt.sampling.guidance import HQ_AUDIO_GUIDER, HQ_VIDEO_GUIDER, GuiderParams
from ltx2rt.sampling.samplers import Sampler


class TwoStagesHQPipeline(TwoStagesPipeline):
    """As `TwoStagesPipeline`, with res_2s, its own guidance, and the distilled LoRA in both
    stages, at `GuidanceConfig.distilled_strengths`.
    """

    name: ClassVar[str] = "two-stage-hq"
    summary: ClassVar[str] = "As two-stage, with the second-order sampler res-2s in both stages."
    default_size: ClassVar[tuple[int, int] | None] = (1088, 1920)
    sampler: ClassVar[Sampler] = "res_2s"
    has_strengths: ClassVar[bool] = True

    def with_defaults(
        self, guidance: GuidanceConfig, guides: Sequence[str] | None = None
    ) -> GuidanceConfig:
        """Also fills in the strengths of the distilled LoRA."""
        guidance = super().with_defaults(guidance, guides)
        return replace(
            guidance, distilled_strengths=guidance.distilled_strengths or DISTILLED_STRENGTHS
        )

    def prepare(self, request: Request) -> Request:
        """As `GuidedPipeline.prepare`; a schedule that this size does not have is refused too."""
        request = super().prepare(request)
        config, guidance = request.config, request.guidance
        assert guidance is not None
        if guidance.num_inference_steps is not None and isinstance(config.num_frames, int):
            height, width = self.rendered_size(request)
            half = VideoPixelShape(
                num_frames=config.num_frames,
                height=height // 2,
                width=width // 2,
                frame_rate=config.frame_rate,
            )
            shape = VideoLatentShape.from_pixel_shape(
                half, self.source.model.latent_channels, self.scale_factors
            )
            self.sigmas(guidance, shape.token_count)
        return request

    def default_guiders(self) -> tuple[GuiderParams, GuiderParams]:
        """The preset, equal for all model versions."""
        return HQ_VIDEO_GUIDER, HQ_AUDIO_GUIDER

    def default_steps(self) -> int:
        """The preset; a step takes two evaluations."""
        return 15

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """The user's LoRAs, then the distilled one at each stage's strength."""
        assert request.guidance is not None
        users = (request.config.loras, request.config.refine_loras)
        distilled = request.guidance.distilled_lora
        if distilled is None:
            return [*users]
        strengths = request.guidance.distilled_strengths or DISTILLED_STRENGTHS
        return [
            (*loras, replace(distilled, strength=strength))
            for loras, strength in zip(users, strengths, strict=True)
        ]

    def stage_1_sigmas(self, run: Run) -> Sequence[float]:
        """The schedule of stage 1, shifted by the number of its latent tokens."""
        if run.guidance.num_inference_steps is None:
            return super().stage_1_sigmas(run)
        return self.sigmas(run.guidance, run.video(2).shape.token_count)
