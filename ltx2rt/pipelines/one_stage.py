"""One-stage generation: full size, guided (spec/pipelines.md §1)."""

from __future__ import annotations

from typing import Any, ClassVar

from ltx2rt.components.diffusion_stage import run_stage_with_keyframes
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.engine import Array
from ltx2rt.noise import TorchGenerator
from ltx2rt.pipelines.base import TRANSFORMER
from ltx2rt.pipelines.clip import Clip
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.progress import Job


class OneStagePipeline(GuidedPipeline):
    """Prompt (and images) to a clip with sound in one guided stage."""

    name: ClassVar[str] = "one-stage"
    requires: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        *TRANSFORMER,
        "video_decoder",
        "audio_decoder",
        "vocoder",
    )
    default_size: ClassVar[tuple[int, int]] = (512, 768)

    def __call__(
        self,
        config: GenerationConfig | None = None,
        guidance: GuidanceConfig | None = None,
        *,
        job: Job | None = None,
        trace: StageTrace | None = None,
        **options: Any,
    ) -> Clip:
        """Generate one clip.

        Args:
            config: what to make; or pass its fields by keyword: `pipe(prompt="...", seed=42)`.
            guidance: how to sample; what it leaves open takes the defaults of the model version.
            job: progress, cancelling and timings.
            trace: collects intermediate tensors (parity tests).

        Raises:
            ShapeError, OptionError, CheckpointError, UnsupportedError: see `prepare`.
        """
        config, guidance = self.prepare(config, guidance, options)
        job = job or Job()
        keyframes = self.keyframe_items(config)
        items = self.image_items(config, {"stage_1": 1}, job)
        context, guides = self.guided_context(config, guidance, job, trace)
        generator = TorchGenerator(config.seed)
        stage = self.stage(
            config,
            "stage_1",
            1,
            sigmas=self.sigmas(guidance),
            items=[*items["stage_1"], *keyframes],
        )
        transformer = self.transformer(config.loras)
        video, audio, made = run_stage_with_keyframes(
            stage, transformer, context, generator, job, trace, guides
        )
        self.release(*TRANSFORMER)
        latents: dict[str, Array] = {"stage_1.video": video, "stage_1.audio": audio}
        if made is not None:
            latents["stage_1.keyframes"] = made
        return Clip(
            pipeline=self,
            config=config,
            guidance=guidance,
            job=job,
            latents=latents,
            video_latent=video,
            generator=generator,
            audio_latent=audio,
        )
