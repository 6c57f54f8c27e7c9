"""One generation in progress: what was asked, the random generator, and the latents made so far.

The steps that pipelines are put together from are methods here; their order is the pipeline's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2rt.bundle.manifest import Lora
from ltx2rt.components.denoisers import Guidance
from ltx2rt.components.diffusion_stage import (
    ANCESTRAL_SEED_OFFSET,
    ModalityRequest,
    Shape,
    StageRequest,
    StageResult,
    run_stage,
)
from ltx2rt.components.prompt_encoder import TextContext
from ltx2rt.engine import Array
from ltx2rt.errors import InternalError
from ltx2rt.latents.conditioning import ConditioningItem
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.names import SPATIAL_UPSAMPLER, TRANSFORMER
from ltx2rt.pipelines.run_inputs import RunInputs
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.sampling.samplers import Sampler
from ltx2rt.sampling.schedules import STAGE2_DISTILLED

if TYPE_CHECKING:
    from ltx2rt.pipelines.clip import Clip


class Run(RunInputs):
    """One generation; its stages keep their latents here."""

    def stage(
        self,
        name: str,
        sigmas: Sequence[float],
        context: TextContext,
        loras: Sequence[Lora] = (),
        *,
        video: ModalityRequest[VideoLatentShape] | None,
        audio: ModalityRequest[AudioLatentShape] | None,
        guidance: Guidance | None = None,
        frame_rate: float | None = None,
        generator: TorchGenerator | None = None,
        **facts: Any,
    ) -> StageResult:
        """Run one stage and keep its latents; `facts` are further `StageRequest` fields.

        The request's own sampler and sigmas for this stage replace those given. A stage that the
        run's store has is not run again.

        Args:
            frame_rate: of the stage, where it is not the clip's.
            generator: what the noise is drawn from, where it is not the run's.
        """
        request = self._with_overrides(
            StageRequest(
                name=name,
                sigmas=sigmas,
                frame_rate=frame_rate or self.canvas.frame_rate,
                scale_factors=self.pipeline.scale_factors,
                video=video,
                audio=audio,
                **facts,
            )
        )
        if name in self.stages:  # kept stages are known by their names
            raise InternalError(f"two stages of a pipeline are called {name}")
        self.stages[name] = {
            "sigmas": [float(s) for s in request.sigmas],
            "sampler": request.sampler,
            "loras": [f"{Path(lora.path).absolute()}:{lora.strength:g}" for lora in loras],
        }
        generator = generator or self.generator
        result = self._kept(name, generator)
        if result is None:
            result = run_stage(
                request,
                self.pipeline.transformer(loras),
                context,
                generator,
                self.job,
                self.trace,
                guidance,
            )
            if self.store is not None:
                self.store.save(name, self.stages[name], result.arrays, generator)
        self.latents |= {f"{name}.{part}": latent for part, latent in result.arrays.items()}
        return result

    def _kept(self, name: str, generator: TorchGenerator) -> StageResult | None:
        """What a run that was cut off had of this stage; `generator` goes on after it."""
        if self.store is None:
            return None
        kept = self.store.load(name, self.stages[name], generator)
        if kept is None:
            return None
        self.job.report(name, 1, 1, "kept from before")
        return StageResult(**{"video": None, "audio": None, **kept})

    def _with_overrides(self, request: StageRequest) -> StageRequest:
        """A stage with the sampler and sigmas that the user asked for. What starts at the first
        noise level starts at the new one.
        """
        config = self.config
        sampler, sigmas = {
            "stage_1": (config.sampler, config.sigmas),
            "stage_2": (config.stage_2_sampler, config.stage_2_sigmas),
        }.get(request.name[: len("stage_1")], (None, None))  # stage 2 may work tile by tile
        if sampler is not None:
            turn = 1 if request.name == "stage_1" else 2
            seed = config.seed + turn * ANCESTRAL_SEED_OFFSET
            request = replace(request, sampler=sampler, ancestral_seed=seed)
        if sigmas is None:
            return request
        first, start = request.sigmas[0], sigmas[0]
        return replace(
            request,
            sigmas=sigmas,
            video=_restarted(request.video, first, start),
            audio=_restarted(request.audio, first, start),
        )

    def upsample(self, video: Array | None, upsampler: str = SPATIAL_UPSAMPLER) -> Array:
        """A video latent with more rows and columns, or with more frames (`temporal_upsampler`);
        the upsampler is released. What the run's store has is not made again.
        """
        assert video is not None
        self.upsampled += 1
        name, facts = f"upsample_{self.upsampled}", {"upsampler": upsampler}
        kept = None if self.store is None else self.store.load(name, facts)
        self.job.report("upsample", 0, 1)
        if kept is None:
            upsampled = self.pipeline.upsampler(upsampler)(video)
            self.pipeline.release(upsampler)
            if self.store is not None:
                self.store.save(name, facts, {"video": upsampled})
        else:
            upsampled = kept["video"]
        self.job.report("upsample", 1, 1)
        self.latents["upsampled.video"] = upsampled
        if self.trace is not None:
            number = self.trace.count("upsample") + 1
            self.trace.tensors[f"upsample{number}.out"] = upsampled
        return upsampled

    def refine(
        self,
        first: StageResult,
        context: TextContext,
        loras: Sequence[Lora] = (),
        *,
        video_items: Sequence[ConditioningItem] = (),
        audio: ModalityRequest[AudioLatentShape] | None = None,
        sampler: Sampler = "euler",
    ) -> StageResult:
        """Stage 2: upsample the video of stage 1 and refine it at full size in three unguided
        steps (spec/pipelines.md §0.5).

        Args:
            audio: what to do with the audio; default: refine that of stage 1.
        """
        scale = STAGE2_DISTILLED[0]
        return self.stage(
            "stage_2",
            STAGE2_DISTILLED,
            context,
            loras,
            video=self.video(
                initial=self.upsample(first.video), noise_scale=scale, items=video_items
            ),
            audio=audio or self.audio(initial=first.audio, noise_scale=scale),
            sampler=sampler,
        )

    def clip(
        self,
        video: Array | None,
        audio: Array | None,
        kind: type[Clip] | None = None,
        **facts: Any,
    ) -> Clip:
        """The finished clip, of class `kind` if given; the transformer is released. `facts` are
        further fields of it.
        """
        from ltx2rt.pipelines.clip import Clip
        from ltx2rt.pipelines.hdr_clip import HlgClip

        if self.hdr is not None:
            kind, facts = HlgClip, {**facts, "hdr": self.hdr}
        self.pipeline.release(*TRANSFORMER)
        return (kind or Clip)(
            pipeline=self.pipeline,
            request=self.request,
            job=self.job,
            latents=self.latents,
            video_latent=video,
            audio_latent=audio,
            generator=self.generator,
            stages=self.stages,
            **facts,
        )


def _restarted(
    modality: ModalityRequest[Shape] | None, first: float, start: float
) -> ModalityRequest[Shape] | None:
    """A modality that refines a latent from noise level `first`, to do so from `start`."""
    if modality is None or modality.initial is None or modality.noise_scale != first:
        return modality
    return replace(modality, noise_scale=start)
