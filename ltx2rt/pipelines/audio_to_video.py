"""A clip for sound that exists (spec/pipelines.md §7)."""

from __future__ import annotations

from typing import ClassVar

from ltx2rt.errors import Field, Problem
from ltx2rt.names import AUDIO_ENCODER, SPATIAL_UPSAMPLER, TEXT_ENCODER, TRANSFORMER, VIDEO_DECODER
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.two_stages import TwoStagesPipeline


class AudioToVideoPipeline(TwoStagesPipeline):
    """As `TwoStagesPipeline` with `GenerationConfig.audio`, which it needs: both stages see the
    sound and leave it alone, and the clip carries it as it was read. Only the video is guided.
    """

    name: ClassVar[str] = "audio-to-video"
    counterpart: ClassVar[str | None] = "distilled"
    summary: ClassVar[str] = (
        "A clip for sound that exists, as two-stage with --audio; other pipelines take it too."
    )
    requires: ClassVar[tuple[str, ...]] = (
        *TEXT_ENCODER,
        *TRANSFORMER,
        SPATIAL_UPSAMPLER,
        VIDEO_DECODER,
        AUDIO_ENCODER,
    )
    unused: ClassVar[tuple[str, ...]] = ("generated_keyframes",)
    guides: ClassVar[tuple[str, ...]] = ("video",)

    @classmethod
    def problems(cls, request: Request) -> list[str]:
        """Also a request without sound."""
        problems = super().problems(request)
        if request.config.audio is None:
            problems.append(Problem("it needs ", Field("config.audio")))
        return problems
