"""What the pipelines with a guided first stage share (spec/pipelines.md §1 to §3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from ltx2rt.components.denoisers import Guidance
from ltx2rt.components.diffusion_stage import ModalityRequest, StageResult
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.errors import Field, Problem
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER_BLOCK
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import encode_prompts
from ltx2rt.pipelines.model_kind import samples_distilled
from ltx2rt.pipelines.request import Request
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule, default_guiders
from ltx2rt.sampling.schedules import DISTILLED, begun_at, scheduled_sigmas


class GuidedPipeline(Pipeline):
    """Base of pipelines whose first stage is guided; one that is not (`guided` is False) samples it
    with one pass a step, on the noise levels of distilled models.
    """

    guided: ClassVar[bool] = True
    counterpart: ClassVar[str | None] = "distilled"
    #: what guidance applies to; a modality that is given or absent takes none
    guides: ClassVar[tuple[str, ...]] = ("video", "audio")
    #: whether it takes the strengths of the distilled LoRA from `distilled_strengths`
    has_strengths: ClassVar[bool] = False

    def default_guiders(self) -> tuple[GuiderParams, GuiderParams]:
        """Guidance of video and audio for this bundle; a model with fewer blocks than its version
        has perturbs its last one.
        """
        return default_guiders(min(self.source.model.stg_block, self._block_count() - 1))

    def default_steps(self) -> int:
        """Steps of stage 1 for this bundle."""
        return self.source.model.num_inference_steps

    @classmethod
    def takes(cls, place: str) -> bool:
        """Also whether a modality is guided, and by what."""
        part, _, name = place.partition(".")
        if part != "guidance" or not cls.guided:
            return super().takes(place)
        if name == "audio.modality_scale":  # there must be a video to turn to
            return "audio" in cls.guides and cls.makes == "video"
        if name.startswith(("video", "audio")):
            return name.startswith(cls.guides)
        if name == "distilled_lora":
            return cls.two_stage
        return cls.has_strengths or not name.startswith("distilled_strengths")

    @classmethod
    def problems(cls, request: Request) -> list[str]:
        """Also guidance that no model could follow, or a distilled LoRA that is missing."""
        problems = super().problems(request)
        if not cls.guided:
            return problems
        guidance = request.guidance or GuidanceConfig()
        lora = Field("guidance.distilled_lora")
        if request.config.sigmas is not None and guidance.num_inference_steps is not None:
            problems.append(
                Problem(
                    Field("num_inference_steps"),
                    " and ",
                    Field("config.sigmas"),
                    " exclude each other",
                )
            )
        if not cls.two_stage and guidance.distilled_lora is not None:
            problems.append(Problem("it has no stage for ", lora, "; use ", Field("config.loras")))
        if guidance.distilled_strengths is not None and not cls.has_strengths:
            problems.append(
                Problem(
                    "it takes no ", Field("distilled_strengths"), "; give the strength with ", lora
                )
            )
        return problems

    @classmethod
    def named_problems(cls, places: Iterable[str]) -> list[str]:
        """Also a strength of the distilled LoRA that would be ignored."""
        places = list(places)
        problems = super().named_problems(places)
        if cls.has_strengths and "guidance.distilled_lora.strength" in places:
            problems.append(
                Problem(
                    "it takes the strengths of ",
                    Field("distilled_lora"),
                    " from ",
                    Field("distilled_strengths"),
                )
            )
        return problems

    def prepare(self, request: Request) -> Request:
        """As `Pipeline.prepare`.

        Raises:
            ShapeError: a size does not fit.
            OptionError: guidance that this model cannot do, or no distilled LoRA.
        """
        request = super().prepare(request)
        if not self.guided:
            return request
        guidance = request.guidance or GuidanceConfig()
        if self.two_stage and guidance.distilled_lora is None and not self._is_distilled():
            raise self.refusal(
                [
                    Problem(
                        "it needs a distilled LoRA for stage 2: name one with ",
                        Field("guidance.distilled_lora"),
                        ", or use a distilled model (by its file name), which needs none",
                    )
                ]
            )
        guides = self.guided_modalities(request.config)
        guidance = self.with_defaults(guidance, guides)
        if not request.config.with_audio and guidance.video is not None:  # nothing to turn to
            guidance = replace(guidance, video=replace(guidance.video, modality_scale=1.0))
        if request.config.sigmas is not None:
            guidance = replace(guidance, num_inference_steps=None)
        self._check(request.config, guidance, guides)
        return replace(request, guidance=guidance)

    def _is_distilled(self) -> bool:
        return self.source.model.is_distilled is True

    def guided_modalities(self, config: GenerationConfig) -> tuple[str, ...]:
        """What guidance applies to; sound that is given takes none."""
        return self.guides if config.audio is None and config.with_audio else ("video",)

    def with_defaults(
        self, guidance: GuidanceConfig, guides: Sequence[str] | None = None
    ) -> GuidanceConfig:
        """Guidance with nothing left open, but the steps of a distilled model without its LoRA,
        which has a table of its own.

        Args:
            guides: the modalities that are guided; default: those of the pipeline.
        """
        as_distilled = samples_distilled(type(self), self.source.model, guidance)
        none = GuiderParams()
        video, audio = (none, none) if as_distilled else self.default_guiders()
        if "audio" not in (guides or self.guides):
            audio = none
        guidance = replace(guidance, video=guidance.video or video, audio=guidance.audio or audio)
        if guidance.num_inference_steps is None and not as_distilled:
            guidance = replace(guidance, num_inference_steps=self.default_steps())
        return guidance

    def prompts(self, request: Request) -> list[str]:
        """See `Pipeline`: the negative prompt is encoded only if a guider needs it."""
        prompts = super().prompts(request)
        if self.guided and request.guidance is not None:
            if any(guider.needs_uncond for guider in schedules_of(request.guidance)):
                prompts.append(request.guidance.negative_prompt)
        return prompts

    def encode(self, run: Run) -> tuple[TextContext, Guidance | None]:
        """The prompt's contexts, and stage 1's guidance with those of the negative prompt."""
        audio_only, prompts = self.makes == "audio", self.prompts(run.request)
        both = encode_prompts(run, prompts, audio_only=audio_only)
        if not self.guided:
            return both, None
        video, audio = schedules_of(run.guidance)
        needed = len(prompts) > 1
        # sound that is given never sees the negative prompt
        negative_audio = needed and "audio" in self.guided_modalities(run.config)
        return TextContext(both.video[:1], both.audio[:1]), Guidance(
            video=video,
            audio=audio,
            negative_video=both.video[1:] if needed else None,
            negative_audio=both.audio[1:] if negative_audio else None,
            max_batch_size=self.runtime.max_batch_size,
        )

    def first_stage(
        self,
        run: Run,
        encoded: tuple[TextContext, Guidance | None],
        *,
        video: ModalityRequest[VideoLatentShape] | None,
        audio: ModalityRequest[AudioLatentShape] | None,
        strength: float = 1.0,
    ) -> StageResult:
        """Run the first stage, or the only one.

        Args:
            strength: the noise level at which it begins; those above it are left out, of the user's
                own too.
            encoded: what `encode` gave, which comes before `video` and `audio`: they take their
                sizes from a duration that it may predict.
        """
        context, guidance = encoded
        return run.stage(
            "stage_1",
            begun_at(strength, self.stage_1_sigmas(run)),
            context,
            self.stage_loras(run.request)[0],
            video=video,
            audio=audio,
            overrides=run.stage_1_overrides.begun_at(strength),
            guidance=guidance,
        )

    def stage_1_sigmas(self, run: Run) -> Sequence[float]:
        """Noise levels of stage 1; a distilled model has a table of its own."""
        if not self.guided or run.guidance.num_inference_steps is None:
            return DISTILLED
        return self.sigmas(run.guidance)

    def sigmas(self, guidance: GuidanceConfig, token_count: int | None = None) -> Sequence[float]:
        """Noise levels of stage 1 by the scheduler; those of the request replace them."""
        steps = guidance.num_inference_steps or self.default_steps()
        return [float(s) for s in scheduled_sigmas(guidance.scheduler, steps, token_count)]

    def _block_count(self) -> int:
        return int(self.source.options(TRANSFORMER_BLOCK)["num_layers"])

    def _check(
        self, config: GenerationConfig, guidance: GuidanceConfig, guides: Sequence[str]
    ) -> None:
        problems: list[str] = []
        count = self._block_count()
        schedules = dict(zip(("video", "audio"), schedules_of(guidance), strict=True))
        if config.sampler == "cfg_pp" and not any(s.needs_uncond for s in schedules.values()):
            problems.append(
                Problem(
                    Field("config.sampler"),
                    "=cfg_pp needs a negative prompt: a cfg_scale that is not 1",
                )
            )
        for modality, params in (
            (modality, params)
            for modality, schedule in schedules.items()
            for params in schedule.bins.values()
        ):
            if modality not in guides and params != GuiderParams():
                problems.append(f"it takes no guidance for the {modality}")
            elif self.makes == "audio" and params.modality_scale != 1:
                problems.append(
                    Problem(
                        "it makes no video that could guide its sound: leave ",
                        Field("guidance.audio.modality_scale"),
                        f"={params.modality_scale:g} at 1",
                    )
                )
            wrong = [b for b in params.stg_blocks if not 0 <= b < count]
            if wrong and params.needs_perturbed:
                problems.append(
                    Problem(
                        Field(f"guidance.{modality}.stg_blocks"),
                        f" {wrong} of the {modality} do not exist: the model has blocks 0 to "
                        f"{count - 1}",
                    )
                )
            if params.needs_perturbed and not params.stg_blocks:
                problems.append(
                    Problem(
                        Field(f"guidance.{modality}.stg_scale"),
                        f"={params.stg_scale:g} of the {modality} needs ",
                        Field(f"guidance.{modality}.stg_blocks"),
                    )
                )
        if problems:
            raise self.refusal(problems)


def schedules_of(guidance: GuidanceConfig) -> tuple[GuiderSchedule, GuiderSchedule]:
    """Video and audio guidance by noise level; one for all levels where no schedule is set."""
    video, audio = (GuiderSchedule(bins={1.0: params}) for params in guiders_of(guidance))
    return guidance.video_schedule or video, guidance.audio_schedule or audio


def with_distilled_lora(request: Request) -> list[tuple[Lora, ...]]:
    """The user's LoRAs of each stage; stage 2 adds the distilled one."""
    assert request.guidance is not None
    config, distilled = request.config, request.guidance.distilled_lora
    return [config.loras, (*config.refine_loras, *((distilled,) if distilled else ()))]


def guiders_of(guidance: GuidanceConfig) -> tuple[GuiderParams, GuiderParams]:
    """Video and audio guidance; off where none is set."""
    return guidance.video or GuiderParams(), guidance.audio or GuiderParams()
