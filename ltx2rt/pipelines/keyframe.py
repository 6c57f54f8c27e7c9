"""Keyframe interpolation: a clip that passes through images (spec/pipelines.md §6)."""

from __future__ import annotations

from typing import ClassVar

from ltx2rt.errors import Field, Problem
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.two_stages import TwoStagesPipeline


class KeyframeInterpolationPipeline(TwoStagesPipeline):
    """As `TwoStagesPipeline`, but images always guide in both stages (none replaces a frame), and
    the sound of stage 2 is shipped.
    """

    name: ClassVar[str] = "keyframe"
    auto_duration: ClassVar[bool] = False
    summary: ClassVar[str] = "A clip that passes through images; otherwise as two-stage."
    guiding_images: ClassVar[bool] = True
    audio_stage: ClassVar[str] = "stage_2"
    unused: ClassVar[tuple[str, ...]] = ("generated_keyframes",)

    @classmethod
    def problems(cls, request: Request) -> list[str]:
        """Also a request without images."""
        problems = super().problems(request)
        if not request.config.images:
            problems.append(Problem("it needs at least one image (", Field("images"), ")"))
        return problems
