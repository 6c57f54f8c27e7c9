"""Keyframe interpolation: a clip that passes through images (spec/pipelines.md §6)."""

from __future__ import annotations

from typing import Any, ClassVar

from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.two_stages import TwoStagesPipeline


class KeyframeInterpolationPipeline(TwoStagesPipeline):
    """As `TwoStagesPipeline`, but images always guide in both stages (none replaces a frame), and
    the sound of stage 2 is shipped.
    """

    name: ClassVar[str] = "keyframe"
    guiding_images: ClassVar[bool] = True
    audio_stage: ClassVar[str] = "stage_2"

    def prepare(
        self,
        config: GenerationConfig | None,
        guidance: GuidanceConfig | None,
        options: dict[str, Any],
    ) -> tuple[GenerationConfig, GuidanceConfig]:
        """As `GuidedPipeline.prepare`; also refuses a request without images, and generated
        keyframes.
        """
        config, guidance = super().prepare(config, guidance, options)
        if not config.images:
            raise OptionError(f"the {self.name} pipeline needs at least one image.")
        if config.generated_keyframes:
            raise OptionError(
                f"the {self.name} pipeline generates no keyframes; use the one-stage, two-stage or "
                "distilled pipeline, or leave generated_keyframes out."
            )
        return config, guidance
