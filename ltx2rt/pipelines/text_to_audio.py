"""Sound without a picture (spec/pipelines.md §11)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from ltx2rt.errors import Field, Problem, ShapeError
from ltx2rt.latents.shapes import AudioLatentShape
from ltx2rt.names import AUDIO_DECODER, TEXT_ENCODER, TRANSFORMER, VOCODER
from ltx2rt.pipelines.facts import MEDIA_FIELDS
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.guidance import GuiderParams


class TextToAudioPipeline(GuidedPipeline):
    """Prompt to sound of `num_frames / frame_rate` seconds, in one guided stage of the audio half
    of the transformer.

    ```python
    guidance = ltx2rt.GuidanceConfig(num_inference_steps=2)
    with ltx2rt.TextToAudioPipeline(bundle) as pipe:
        pipe(guidance=guidance, prompt="Rain on a tin roof.").save("rain.wav")
    ```
    """

    name: ClassVar[str] = "text-to-audio"
    counterpart: ClassVar[str | None] = None
    summary: ClassVar[str] = "Prompt to sound alone, in one guided stage."
    requires: ClassVar[tuple[str, ...]] = (*TEXT_ENCODER, *TRANSFORMER, AUDIO_DECODER, VOCODER)
    unused: ClassVar[tuple[str, ...]] = (
        "height", "width", "images", "generated_keyframes", "hdr", "tiling", *MEDIA_FIELDS,
    )  # fmt: skip
    auto_duration: ClassVar[bool] = True
    default_size: ClassVar[tuple[int, int] | None] = None
    makes: ClassVar[Literal["video", "audio"]] = "audio"
    guides: ClassVar[tuple[str, ...]] = ("audio",)

    def default_guiders(self) -> tuple[GuiderParams, GuiderParams]:
        """Those of the model version for the sound, which has no other modality to turn from."""
        return GuiderParams(), replace(super().default_guiders()[1], modality_scale=1.0)

    def prepare(self, request: Request) -> Request:
        """As `GuidedPipeline.prepare`; `num_frames` need not be `8k+1`.

        Raises:
            ShapeError: the sound would be shorter than one latent step.
            OptionError: guidance of a picture, or guidance that this model cannot do.
        """
        request = super().prepare(request)
        frames, rate = request.config.num_frames, request.config.frame_rate
        if isinstance(frames, int) and AudioLatentShape.from_duration(frames / rate).num_frames < 1:
            raise ShapeError(
                Problem(
                    Field("num_frames"),
                    f"={frames} at {rate:g} frames per second is less than one step of sound "
                    "(0.04 s); use more.",
                )
            )
        return request

    def generate(self, run: Run) -> Clip:
        encoded = self.encode(run)
        result = self.first_stage(run, encoded, video=None, audio=run.audio())
        return self.clip(run, None, result.audio)
