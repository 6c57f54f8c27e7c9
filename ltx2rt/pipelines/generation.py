"""One generation in progress: what was asked, the random generator, and the latents made so far.

The steps that pipelines are put together from are methods here; their order is the pipeline's. What
goes into the stages is made by `inputs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from ltx2rt.errors import InternalError, OptionError
from ltx2rt.latents.conditioning import ConditioningItem
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.frame_sizes import frame_size
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx2rt.latents.tiling import AxisTile
from ltx2rt.lora.files import Lora
from ltx2rt.media.hdr import HDR_FORMATS, HdrFormat
from ltx2rt.names import SPATIAL_UPSAMPLER
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.refine_tiles import Tile, cut_to_tile, latent_box, spatial_tiles
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.results.latent_file import LatentFile
from ltx2rt.results.stage_store import StageStore
from ltx2rt.sampling.gpu_noise import Generator, make_generator
from ltx2rt.sampling.samplers import Sampler
from ltx2rt.sampling.schedules import STAGE2_DISTILLED, begun_at


class Run:
    """One generation; its stages keep their latents here.

    Args:
        engines: of the pipeline.
        request: checked, defaults filled in.
        job: progress, cancelling and timings.
        trace: collects intermediate tensors (parity tests).
        store: keeps finished stages, and has those of a run that was cut off.
        check_sizes: refuses sizes that the engines do not take, of a length that was predicted.

    Attributes:
        generator: the run's random generator, seeded with the request's seed; its order of draws is
            part of the result (spec/sampling.md §8).
        canvas: the clip that stages work on; a pipeline sets it where that is larger, longer or
            faster than what was asked for. What was asked for lies at its top and left. An
            automatic duration is one frame until the prompts are encoded.
        latents: `stage_1.video`, `stage_1.audio`, `upsampled.video`, ... as they were made.
        frames: of the clip, where the canvas has more; None: those of the canvas.
        audio_items: conditioning of the sound in every stage: that of clips before and after.
        sound: the clip's, where it is given: `[2, N]` float32 and its rate in Hz.
        generators: states of the random generator after each stage.
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
        check_sizes: Callable[[Request], None] | None = None,
    ) -> None:
        self.engines = engines
        self.request = request
        self.job = job
        self.trace = trace
        self.generator = make_generator(request.config.seed, request.config.noise)
        self.store = store
        self.check_sizes = check_sizes
        self.latents: dict[str, Array] = {}
        self.frames: int | None = None
        self.audio_items: list[ConditioningItem] = []
        self.generators: dict[str, Array] = {}
        self.sound: tuple[NDArray[np.float32], int] | None = None
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

    def shown(self, divisor: int = 1) -> tuple[int, int]:
        """Height and width of what was asked for, on the canvas over `divisor`."""
        height, width = (
            min(asked, rendered)
            for asked, rendered in (
                (self.config.height, self.canvas.height),
                (self.config.width, self.canvas.width),
            )
        )
        return math.ceil(height / divisor), math.ceil(width / divisor)

    def crop(self, video: Array) -> tuple[int, int, int] | None:
        """Frames, height and width of what was asked for in a decoded latent `[1, C, F, H, W]`,
        which may be smaller than the canvas; None: all of it.
        """
        time, rows, columns = self.engines.scale_factors
        frames, height, width = video.shape[2:]
        shown = self.shown(self.canvas.height // (height * rows))
        sides = [side - side % 2 for side in shown]
        if sides == [height * rows, width * columns] and self.frames is None:
            return None
        return self.frames or (frames - 1) * time + 1, sides[0], sides[1]

    def lengthen(self) -> None:
        """Make the canvas so long that the model can render it: `8k+1` frames."""
        frames, time = self.canvas.num_frames, self.engines.scale_factors.time
        if (frames - 1) % time:
            self.frames = frames
            self.canvas = replace(self.canvas, num_frames=frames + (1 - frames) % time)

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
            shape=shape,
            initial=initial,
            noise_scale=noise_scale,
            items=[*self.audio_items, *items],
            frozen=frozen,
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
        generator: Generator | None = None,
        identity: float = 0.0,
    ) -> StageResult:
        """Run one stage and keep its latents. A stage that the run's store has is not run again.

        Args:
            overrides: the user's sampler and sigmas, which replace those given; None: the stage
                has its own whatever the user asks for.
            ancestral_seed, ancestral_eta: see `StageRequest`.
            frame_rate: of the stage, where it is not the clip's.
            generator: what the noise is drawn from, where it is not the run's.
            identity: scale of identity guidance, for sound with reference tokens.
        """
        if not self.config.with_audio:
            audio = None
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
            noise=self.config.noise,
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
        result = self._given(request, generator) or self._kept(name, generator)
        if result is not None:
            self._check_finite(f"{name}, from a file", result.arrays)
        else:
            result = self.denoised(request, loras, context, generator, guidance, identity)
            if self.store is not None:
                self.store.save(name, self.stages[name], result.arrays, generator)
        self.latents |= {f"{name}.{part}": latent for part, latent in result.arrays.items()}
        self.generators[name] = generator.state
        return result

    def denoised(
        self,
        request: StageRequest,
        loras: Sequence[Lora],
        context: TextContext,
        generator: Generator,
        guidance: Guidance | None,
        identity: float,
    ) -> StageResult:
        """What a stage makes."""
        colours = None if self.job.on_preview is None else self.engines.latent_colours()
        return run_stage(
            request,
            self.engines.transformer(loras),
            context,
            generator,
            self.job,
            self.trace,
            guidance,
            colours,
            identity,
            allow_nan=self.engines.runtime.allow_nan,
        )

    def _check_finite(self, where: str, latents: Mapping[str, Array]) -> None:
        named = {f"the {name} latent": array for name, array in latents.items()}
        check_finite(where, named, allowed=self.engines.runtime.allow_nan)

    def _given(self, request: StageRequest, generator: Generator) -> StageResult | None:
        """A first stage that a file holds; with its seed, the generator goes on after it.

        Raises:
            OptionError: it is of another size.
        """
        if self.config.latents is None or request.name != "stage_1":
            return None
        file = LatentFile(self.config.latents)
        parts = ("video", "audio", "keyframes")
        found = {p: file.read(f"stage_1.{p}") for p in parts if file.sizes(f"stage_1.{p}")}
        for part, asked in (("video", request.video), ("audio", request.audio)):
            have = found[part].shape if part in found else None
            if have != (None if asked is None else asked.shape.sizes):
                raise OptionError(
                    f"the {part} of stage_1 in {file.path} has shape {have}, and that of this clip "
                    f"{asked and asked.shape.sizes}; leave size and length out to take the file's."
                )
        state = file.generator("stage_1")
        kept = file.record.request.config
        same = (kept.seed, kept.noise) == (self.config.seed, self.config.noise)
        if state is not None and same:
            generator.state = state
        self.stages["stage_1"]["latents"] = str(file.path)
        self.job.report("stage_1", 1, 1, f"taken from {file.path}")
        return StageResult(**{"video": None, "audio": None, **found})

    def _kept(self, name: str, generator: Generator) -> StageResult | None:
        """What a run that was cut off had of this stage; `generator` goes on after it."""
        kept = self.kept(name, self.stages[name], generator)
        if kept is None:
            return None
        self.job.report(name, 1, 1, "kept from before")
        return StageResult(**{"video": None, "audio": None, **kept})

    def kept(
        self, name: str, facts: Mapping[str, Any], generator: Generator | None = None
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
        video: Array | None = None,
        video_items: Sequence[ConditioningItem] = (),
        audio: ModalityRequest[AudioLatentShape] | None = None,
        sampler: Sampler = "euler",
        strength: float = 1.0,
    ) -> StageResult:
        """Stage 2: upsample the video of stage 1 and refine it at full size in three unguided
        steps (spec/pipelines.md §0.5).

        Args:
            video: what is refined, `[1, C, F, H, W]`; default: the video of stage 1, upsampled.
            strength: the noise level at which it begins; those above it are left out.
            audio: what to do with the audio; default: refine that of stage 1. In tiles
                (`GenerationConfig.stage_2_tile`) it stays as stage 1 made it.
        """
        sigmas = begun_at(strength, STAGE2_DISTILLED)
        if video is None:
            video = self.upsample(first.video)
        if audio is None and first.audio is not None:
            audio = self.audio(initial=first.audio, noise_scale=sigmas[0])
            if self.config.stage_2_tile is not None:
                audio = replace(audio, noise_scale=0.0, frozen=True)
        if (size := self.config.stage_2_tile) is not None:
            factors = self.engines.scale_factors
            height, width = frame_size(size)
            most = max(height // factors.height, 2), max(width // factors.width, 2)
            refined = self.refine_tiles(
                video,
                spatial_tiles(video.shape[2:], most),
                sigmas,
                context,
                loras,
                lambda tile: [cut_to_tile(item, tile) for item in video_items],
                audio,
                sampler,
                strength,
            )
            if first.audio is not None:
                self.latents["stage_2.audio"] = first.audio
            return StageResult(video=refined, audio=first.audio)
        return self.stage(
            "stage_2",
            sigmas,
            context,
            loras,
            video=self.video(initial=video, noise_scale=sigmas[0], items=video_items),
            audio=audio,
            overrides=self.stage_2_overrides.begun_at(strength),
            sampler=sampler,
        )

    def refine_tiles(
        self,
        upsampled: Array,
        axes: Sequence[Sequence[AxisTile]],
        sigmas: Sequence[float],
        context: TextContext,
        loras: Sequence[Lora],
        items: Callable[[Tile], Sequence[ConditioningItem]],
        audio: ModalityRequest[AudioLatentShape] | None,
        sampler: Sampler = "euler",
        strength: float = 1.0,
    ) -> Array:
        """Refine a latent `[1, C, F, H, W]` in overlapping tiles and blend them; every tile has
        positions of its own, as in training, and noise of its own. Kept as `stage_2.video`.

        Args:
            axes: tiles along time, height and width.
            sigmas: noise levels.
            items: conditioning of a tile.
            audio: what every tile hears, frozen; None: nothing.
            strength: the noise level at which the user's own levels begin.
        """
        result = np.zeros_like(upsampled)
        for index, tile in enumerate(product(*axes)):
            box = latent_box(*(axis.source for axis in tile))
            refined = self.stage(
                f"stage_2_tile_{index + 1}",
                sigmas,
                context,
                loras,
                video=self.video_part(upsampled[box], noise_scale=sigmas[0], items=items(tile)),
                audio=audio,
                overrides=self.stage_2_overrides.begun_at(strength),
                sampler=sampler,
                generator=make_generator(self.config.seed + index, self.config.noise),
            )
            assert refined.video is not None
            time, row, column = (axis.weights for axis in tile)
            result[box] += refined.video * (time[:, None, None] * row[:, None] * column)
        self.latents["stage_2.video"] = result
        return result
