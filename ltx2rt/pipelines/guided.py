"""What the pipelines with a guided first stage share (spec/pipelines.md §1 to §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ltx2rt.components.denoisers import Guidance
from ltx2rt.components.prompt_encoder import TextContext
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.errors import OptionError, join_problems
from ltx2rt.guidance import GuiderParams, GuiderSchedule, default_guiders
from ltx2rt.manifest import Lora
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.progress import Job
from ltx2rt.schedules import ltx2_sigmas
from ltx2rt.shapes import check_generation_size


class GuidedPipeline(Pipeline):
    """Base of the guided pipelines."""

    #: whether stage 1 works at half size and a second stage refines it
    two_stage: ClassVar[bool] = False

    def default_guiders(self) -> tuple[GuiderParams, GuiderParams]:
        """Guidance of video and audio for this bundle; a model with fewer blocks than its version
        has perturbs its last one.
        """
        return default_guiders(min(self.source.model.stg_block, self._block_count() - 1))

    def default_steps(self) -> int:
        """Steps of stage 1 for this bundle."""
        return self.source.model.num_inference_steps

    def prepare(
        self,
        config: GenerationConfig | None,
        guidance: GuidanceConfig | None,
        options: dict[str, Any],
    ) -> tuple[GenerationConfig, GuidanceConfig]:
        """The request with every default filled in, checked before anything is loaded.

        Raises:
            ShapeError: a size does not fit.
            OptionError: guidance that this model cannot do, or no distilled LoRA.
            CheckpointError, UnsupportedError: a LoRA does not fit.
        """
        config = config or self.make_config(options)
        check_generation_size(
            config.height, config.width, config.num_frames, self.two_stage, self.scale_factors
        )
        guidance = self.with_defaults(guidance or GuidanceConfig())
        self._check(guidance)
        for loras in self.stage_loras(config, guidance):
            self.check_loras(loras)
        return config, guidance

    def with_defaults(self, guidance: GuidanceConfig) -> GuidanceConfig:
        """Guidance with nothing left open."""
        video, audio = self.default_guiders()
        guidance = replace(guidance, video=guidance.video or video, audio=guidance.audio or audio)
        if guidance.sigmas is None and guidance.num_inference_steps is None:
            guidance = replace(guidance, num_inference_steps=self.default_steps())
        return guidance

    def stage_loras(
        self, config: GenerationConfig, guidance: GuidanceConfig
    ) -> list[tuple[Lora, ...]]:
        """LoRAs of each stage."""
        return [config.loras]

    def guided_context(
        self,
        config: GenerationConfig,
        guidance: GuidanceConfig,
        job: Job,
        trace: StageTrace | None,
    ) -> tuple[TextContext, Guidance]:
        """The prompt's contexts, and stage 1's guidance with those of the negative prompt; that
        one is encoded only if a guider needs it.
        """
        video, audio = guiders_of(guidance)
        needed = video.needs_uncond or audio.needs_uncond
        prompts = [config.prompt, guidance.negative_prompt] if needed else [config.prompt]
        both = self.encode(prompts, job)
        positive = TextContext(both.video[:1], both.audio[:1])
        if trace is not None:
            trace.tensors.update({"context.video": positive.video, "context.audio": positive.audio})
        return positive, Guidance(
            video=GuiderSchedule(bins={1.0: video}),
            audio=GuiderSchedule(bins={1.0: audio}),
            negative_video=both.video[1:] if needed else None,
            negative_audio=both.audio[1:] if needed else None,
            max_batch_size=self.runtime.max_batch_size,
        )

    def sigmas(self, guidance: GuidanceConfig, token_count: int | None = None) -> Sequence[float]:
        """Noise levels of stage 1: those asked for, or the schedule."""
        if guidance.sigmas is not None:
            return guidance.sigmas
        steps = guidance.num_inference_steps or self.default_steps()
        return [float(s) for s in ltx2_sigmas(steps, token_count)]

    def _block_count(self) -> int:
        return int(self.source.options("transformer_block")["num_layers"])

    def _check(self, guidance: GuidanceConfig) -> None:
        problems = []
        count = self._block_count()
        for modality, params in zip(("video", "audio"), guiders_of(guidance), strict=True):
            wrong = [b for b in params.stg_blocks if not 0 <= b < count]
            if wrong and params.needs_perturbed:
                problems.append(
                    f"stg_blocks {wrong} of the {modality} do not exist: the model has blocks 0 to "
                    f"{count - 1}"
                )
            if params.needs_perturbed and not params.stg_blocks:
                problems.append(
                    f"stg_scale={params.stg_scale:g} of the {modality} needs stg_blocks"
                )
        if not self.two_stage and guidance.distilled_lora is not None:
            problems.append(f"the {self.name} pipeline has no stage for a distilled LoRA")
        if guidance.distilled_strengths is not None and self.name != "two-stage-hq":
            problems.append(
                f"the {self.name} pipeline takes no distilled_strengths; give the strength with "
                "the distilled LoRA"
            )
        if self.two_stage and guidance.distilled_lora is None:
            problems.append(
                f"the {self.name} pipeline needs a distilled LoRA for stage 2: name one "
                "(--distilled-lora FILE), or use the distilled pipeline with a distilled model"
            )
        if problems:
            raise OptionError(join_problems("cannot generate", problems))


def guiders_of(guidance: GuidanceConfig) -> tuple[GuiderParams, GuiderParams]:
    """Video and audio guidance; off where none is set."""
    return guidance.video or GuiderParams(), guidance.audio or GuiderParams()
