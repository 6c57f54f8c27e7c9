"""One generation in progress: what was asked, the random generator, and the latents made so far.

The steps that pipelines are put together from are methods here; their order is the pipeline's. What
goes into the stages is made by `inputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltx2rt.components.denoisers import Guidance
from ltx2rt.components.diffusion_stage import (
    ANCESTRAL_SEED_OFFSET,
    ModalityRequest,
    StageOverrides,
    StageRequest,
    StageResult,
    run_stage,
)
from ltx2rt.components.finite import check_finite
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.engine import Array
from ltx2rt.errors import InternalError
from ltx2rt.latents.conditioning import ConditioningItem
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx2rt.lora.files import Lora
from ltx2rt.media.hdr import HDR_FORMATS, HdrFormat
from ltx2rt.names import SPATIAL_UPSAMPLER
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.results.stage_store import StageStore
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.sampling.samplers import Sampler
from ltx2rt.sampling.schedules import STAGE2_DISTILLED


class Run:
    """One generation; its stages keep their latents here.

    Args:
        engines: of the pipeline.
        request: checked, defaults filled in.
        job: progress, cancelling and timings.
        trace: collects intermediate tensors (parity tests).
        store: keeps finished stages, and has those of a run that was cut off.

    Attributes:
        generator: the run's random generator, seeded with the request's seed; its order of draws is
            part of the result (spec/sampling.md §8).
        canvas: the clip that stages work on; a pipeline sets it where that is larger, longer or
            faster than what was asked for. An automatic duration is one frame until the prompts
            are encoded.
        latents: `stage_1.video`, `stage_1.audio`, `upsampled.video`, ... as they were made.
        stages: what every stage did: its sigmas, sampler and LoRAs.
        upsampled: how often a latent was upsampled.
    """

    def __init__(
        self,
        engines: Engines,
        request: Request,
        job: Job,
        trace: StageTrace | None = None,
        store: StageStore | None = None,
    ) -> None:
        self.engines = engines
        self.request = request
        self.job = job
        self.trace = trace
        self.generator = TorchGenerator(request.config.seed)
        self.store = store
        self.latents: dict[str, Array] = {}
        frames = request.config.num_frames
        self.canvas = VideoPixelShape(
            num_frames=frames if isinstance(frames, int) else 1,
            height=request.config.height,
            width=request.config.width,
            frame_rate=request.config.frame_rate,
        )
        self.stages: dict[str, dict[str, Any]] = {}
        self.upsampled = 0

    @property
    def config(self) -> GenerationConfig:
        return self.request.config

    @property
    def guidance(self) -> GuidanceConfig:
        """How guided pipelines sample; their `prepare` fills it in."""
        assert self.request.guidance is not None
        return self.request.guidance

    @property
    def hdr(self) -> HdrFormat | None:
        """What the EXR files of this clip hold; None for one of ordinary range."""
        return HDR_FORMATS[self.config.hdr] if self.config.hdr else None

    def pixels(self, divisor: int = 1) -> VideoPixelShape:
        """The canvas, its height and width divided.

        Raises:
            InternalError: an automatic duration that was not predicted yet.
        """
        if isinstance(self.config.num_frames, AutoDuration):
            raise InternalError("the length of the clip was asked for before it was predicted")
        return replace(
            self.canvas, height=self.canvas.height // divisor, width=self.canvas.width // divisor
        )

    def video(
        self,
        divisor: int = 1,
        *,
        initial: Array | None = None,
        noise_scale: float = 1.0,
        items: Sequence[ConditioningItem] = (),
        frozen: bool = False,
    ) -> ModalityRequest[VideoLatentShape]:
        """The video of a stage at the clip's size over `divisor`."""
        shape = VideoLatentShape.from_pixel_shape(
            self.pixels(divisor),
            self.engines.source.model.latent_channels,
            self.engines.scale_factors,
        )
        return ModalityRequest(
            shape=shape, initial=initial, noise_scale=noise_scale, items=items, frozen=frozen
        )

    def video_part(
        self, latent: Array, *, noise_scale: float, items: Sequence[ConditioningItem]
    ) -> ModalityRequest[VideoLatentShape]:
        """The video of a stage that goes on from a part of the clip, of the part's size."""
        shape = VideoLatentShape.from_sizes(latent.shape)
        return ModalityRequest(shape=shape, initial=latent, noise_scale=noise_scale, items=items)

    def audio(
        self,
        *,
        initial: Array | None = None,
        noise_scale: float = 1.0,
        items: Sequence[ConditioningItem] = (),
        frozen: bool = False,
    ) -> ModalityRequest[AudioLatentShape]:
        """The audio of a stage, as long as the clip."""
        model = self.engines.source.model
        shape = AudioLatentShape.from_duration(
            self.pixels().duration_s, channels=model.audio_channels, mel_bins=model.audio_bins
        )
        return ModalityRequest(
            shape=shape, initial=initial, noise_scale=noise_scale, items=items, frozen=frozen
        )

    @property
    def stage_1_overrides(self) -> StageOverrides:
        """Sampler and sigmas that the user asked for in stage 1."""
        seed = self.config.seed + ANCESTRAL_SEED_OFFSET
        return StageOverrides(self.config.sampler, self.config.sigmas, seed)

    @property
    def stage_2_overrides(self) -> StageOverrides:
        """Those of stage 2, which may work tile by tile."""
        seed = self.config.seed + 2 * ANCESTRAL_SEED_OFFSET
        return StageOverrides(self.config.stage_2_sampler, self.config.stage_2_sigmas, seed)

    def stage(
        self,
        name: str,
        sigmas: Sequence[float],
        context: TextContext,
        loras: Sequence[Lora] = (),
        *,
        video: ModalityRequest[VideoLatentShape] | None,
        audio: ModalityRequest[AudioLatentShape] | None,
        overrides: StageOverrides | None,
        guidance: Guidance | None = None,
        sampler: Sampler = "euler",
        ancestral_seed: int = 0,
        ancestral_eta: float = 1.0,
        frame_rate: float | None = None,
        generator: TorchGenerator | None = None,
    ) -> StageResult:
        """Run one stage and keep its latents. A stage that the run's store has is not run again.

        Args:
            overrides: the user's sampler and sigmas, which replace those given; None: the stage
                has its own whatever the user asks for.
            ancestral_seed, ancestral_eta: see `StageRequest`.
            frame_rate: of the stage, where it is not the clip's.
            generator: what the noise is drawn from, where it is not the run's.
        """
        request = StageRequest(
            name=name,
            sigmas=sigmas,
            frame_rate=frame_rate or self.canvas.frame_rate,
            scale_factors=self.engines.scale_factors,
            video=video,
            audio=audio,
            sampler=sampler,
            ancestral_seed=ancestral_seed,
            ancestral_eta=ancestral_eta,
            overrides=overrides,
        ).overridden()
        if name in self.stages:  # kept stages are known by their names
            raise InternalError(f"two stages of a pipeline are called {name}")
        self.stages[name] = {
            "sigmas": [float(s) for s in request.sigmas],
            "sampler": request.sampler,
            "loras": [f"{Path(lora.path).absolute()}:{lora.strength:g}" for lora in loras],
        }
        generator = generator or self.generator
        result = self._kept(name, generator)
        if result is not None:
            self._check_finite(f"{name}, kept from before", result.arrays)
        else:
            result = run_stage(
                request,
                self.engines.transformer(loras),
                context,
                generator,
                self.job,
                self.trace,
                guidance,
                allow_nan=self.engines.runtime.allow_nan,
            )
            if self.store is not None:
                self.store.save(name, self.stages[name], result.arrays, generator)
        self.latents |= {f"{name}.{part}": latent for part, latent in result.arrays.items()}
        return result

    def _check_finite(self, where: str, latents: Mapping[str, Array]) -> None:
        named = {f"the {name} latent": array for name, array in latents.items()}
        check_finite(where, named, allowed=self.engines.runtime.allow_nan)

    def _kept(self, name: str, generator: TorchGenerator) -> StageResult | None:
        """What a run that was cut off had of this stage; `generator` goes on after it."""
        kept = self.kept(name, self.stages[name], generator)
        if kept is None:
            return None
        self.job.report(name, 1, 1, "kept from before")
        return StageResult(**{"video": None, "audio": None, **kept})

    def kept(
        self, name: str, facts: Mapping[str, Any], generator: TorchGenerator | None = None
    ) -> dict[str, Array] | None:
        """Arrays that a run that was cut off had of a stage; see `StageStore.load`."""
        return None if self.store is None else self.store.load(name, facts, generator)

    def upsample(self, video: Array | None, upsampler: str = SPATIAL_UPSAMPLER) -> Array:
        """A video latent with more rows and columns, or with more frames (`temporal_upsampler`);
        the upsampler is released. What the run's store has is not made again.
        """
        assert video is not None
        self.upsampled += 1
        name, facts = f"upsample_{self.upsampled}", {"upsampler": upsampler}
        kept = self.kept(name, facts)
        self.job.report("upsample", 0, 1)
        if kept is None:
            upsampled = self.engines.upsampler(upsampler)(video)
            self.engines.release(upsampler)
            self._check_finite("upsample", {"video": upsampled})
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
            overrides=self.stage_2_overrides,
            sampler=sampler,
        )
