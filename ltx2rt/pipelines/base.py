"""What every pipeline shares: how a request is run, and what becomes of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.source import ModelSource
from ltx2rt.components.embeddings import write_embeddings
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig, GuidanceConfig, RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import InternalError, OptionError
from ltx2rt.lora.files import Lora
from ltx2rt.media.hdr import HdrFormat
from ltx2rt.names import TEXT_ENCODER, TRANSFORMER
from ltx2rt.pipelines.built_sizes import SizeChecks
from ltx2rt.pipelines.catalog import catalog_class
from ltx2rt.pipelines.decoding import chosen_tiling, decode_audio, decode_video
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.enhancing import enhanced_by_own
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.given import Change, wanted_clips
from ltx2rt.pipelines.next_clip import Cancel, NextClip
from ltx2rt.pipelines.options import GenerationOptions
from ltx2rt.pipelines.preparation import PipelineRequests
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.results.clip import Clip
from ltx2rt.results.clip_times import ClipTimes, expected_seconds, remember, times_file
from ltx2rt.results.latent_file import DECODE
from ltx2rt.results.record import Record
from ltx2rt.results.stage_store import StageStore
from ltx2rt.trace import note

logger = logging.getLogger(__name__)


class Pipeline(PipelineRequests):
    """Base of the pipelines: a context manager, which closes its engines.

    Args:
        source: an opened bundle.
        runtime: how to run.

    Raises:
        BundleError: the bundle lacks components that this pipeline needs; all are named.
    """

    def __init__(self, source: Bundle | ModelSource, runtime: RuntimeConfig | None = None) -> None:
        # a request may bring its text contexts along: `prepare` looks for the text encoder
        self._refuse_missing([c for c in self.missing(source.has) if c not in TEXT_ENCODER])
        self.engines = Engines(source, runtime)
        self._accepted: list[tuple[Request, SizeChecks]] = []
        self._clips_made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free every engine; clips that are not decoded yet cannot be decoded afterwards."""
        self.engines.close()

    def __call__(
        self,
        config: GenerationConfig | None = None,
        guidance: GuidanceConfig | None = None,
        inputs: Any = None,
        *,
        job: Job | None = None,
        trace: StageTrace | None = None,
        work_dir: Path | None = None,
        resume: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Clip:
        """Generate one clip.

        ```python
        clip = pipe(prompt="A harbour wakes up.", seed=7, images=["first.png"])
        clip.save("out.mp4")
        ```

        Threads that share a pipeline take turns: a call, and the decoding of a clip from its first
        frame to its last, keeps it from all others.

        Args:
            config: what to make; or pass its fields by keyword. Then `images` may also be files,
                images of Pillow, arrays `[H, W, 3]` or contents of files, and `audio` a sound in
                memory (see `ltx2rt.image_file` and `sound_file`).
            guidance: how guided pipelines sample; what it leaves open takes the defaults of
                pipeline and model version.
            inputs: further inputs of this pipeline, an `Inputs`; or pass its fields by keyword.
            job: progress, cancelling and timings.
            trace: collects intermediate tensors (parity tests).
            work_dir: keeps every finished stage here.
            resume: take over the finished stages that `work_dir` has from this same request.

        Returns:
            A clip whose latents are done; frames and sound are decoded when asked for.

        Raises:
            ShapeError: a size does not fit.
            OptionError: an option is not allowed, unknown or missing; or the pipeline is closed.
            EngineError: an engine failed, or gave NaN or infinity (see `RuntimeConfig.allow_nan`).
            CheckpointError, UnsupportedError: a LoRA does not fit, or the model cannot do it.
        """
        request = self.accept(self.make_request(config, guidance, inputs, options))
        return self.run_accepted(request, job=job, trace=trace, work_dir=work_dir, resume=resume)

    def run_accepted(
        self,
        request: Request,
        *,
        job: Job | None = None,
        trace: StageTrace | None = None,
        work_dir: Path | None = None,
        resume: bool = False,
    ) -> Clip:
        """The clip of a request that `accept` gave back; for the rest see a call."""
        with self.engines.run():
            checks = self._checks_of(request)
            looks = job is not None and job.on_preview is not None
            fixed = isinstance(request.config.num_frames, int)
            self.engines.plan_for(checks.used if checks and fixed and not looks else None)
            for loras in self.stage_loras(request):
                self.check_loras(loras)
                self._warn_of_late_connectors(request, loras)
            store = None
            if work_dir is not None:
                store = StageStore(work_dir, self.record(request, {}), resume=resume)
            run = Run(self.engines, request, job or Job(), trace, store, self._check_sizes)
            clip = self._made(run)
            self._clips_made += 1
            return clip

    def _made(self, run: Run) -> Clip:
        """The clip of a run, on the canvas that this pipeline works on."""
        if self.makes == "video":
            height, width = self.rendered_size(run.request)
            run.canvas = dataclasses.replace(run.canvas, height=height, width=width)
            if self.any_length:
                run.lengthen()
        if isinstance(run.config.num_frames, int) and (times := self._times_of(run)) is not None:
            path, kind, shape = times
            run.job.expect(expected_seconds(path, kind, shape))
        return self.generate(run)

    def _times_of(self, run: Run) -> tuple[Path, str, tuple[int, int, int]] | None:
        """Where clips of this bundle are remembered, what else decides how long one takes, and the
        canvas; None for what stands for a bundle, and where there is no cache.
        """
        if not isinstance(self.source, Bundle):
            return None
        if (path := times_file(self.source.bundle_id)) is None:
            return None
        runtime = self.runtime
        kind = (self.name, runtime.device, *runtime.devices, runtime.threads, runtime.residency)
        warm = "another" if self._clips_made else "first"
        shape = (run.canvas.num_frames, run.canvas.height, run.canvas.width)
        return path, f"{warm} {' '.join(map(str, kind))}", shape

    def generate_many(
        self,
        seeds: Iterable[int] | None = None,
        config: GenerationConfig | None = None,
        guidance: GuidanceConfig | None = None,
        inputs: Any = None,
        *,
        prompts: Sequence[str] | None = None,
        num_videos: int | None = None,
        job: Job | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[Clip]:
        """One clip for every prompt and seed, made when it is asked for; prompts are encoded once.
        Where a GPU's plan gives the decoder of pictures memory of its own (`ltx2rt doctor --memory`
        says so), the next clip is made on a thread of its own meanwhile.

        ```python
        for number, clip in enumerate(pipe.generate_many(prompts=["Rain.", "Snow."])):
            clip.save(f"{number}.mp4")
        ```

        Save or decode a clip before the next one, or run with `residency="resident"`.

        Args:
            seeds: of the clips of a prompt, in turn.
            prompts: instead of the one prompt of `config`.
            num_videos: instead of seeds: so many clips of a prompt, with seeds counted up.
            config, guidance, inputs, job, options: as a call's.

        Raises:
            OptionError: seeds as well as their number, a number below 1, or no prompts; here,
                and for the rest see a call.
        """
        changes = wanted_clips(config, options, seeds, prompts, num_videos)

        def make(change: Change, job: Job | None) -> Clip:
            if config is None:
                given: dict[str, Any] = {**options, **change}
                return self(None, guidance, inputs, job=job, **given)
            now = dataclasses.replace(config, **change)
            return self(now, guidance, inputs, job=job, **options)

        return self._in_turn(make, changes, job)

    def _in_turn(
        self, make: Callable[[Change, Job | None], Clip], changes: Sequence[Change], job: Job | None
    ) -> Iterator[Clip]:
        """The clips, each begun when the one before it is handed out, or asked for."""
        ahead: NextClip[Clip] | None = None
        try:
            for change, following in zip_longest(changes, changes[1:]):
                clip = make(change, job) if ahead is None else ahead.take()
                ahead = None
                if following is not None and self.engines.picture_is_apart():
                    cancel = Cancel(job.cancel if job is not None else None)
                    own = dataclasses.replace(job or Job(), cancel=cancel)
                    ahead = NextClip(self.engines, partial(make, following, own), cancel)
                elif following is not None and not self.engines.on_host:
                    note("the GPU has no room for the next clip beside the decoding of this one")
                yield clip
        finally:
            if ahead is not None:
                ahead.drop()

    def generate(self, run: Run) -> Clip:
        """The pipeline itself, for a request that was checked."""
        raise InternalError(f"{type(self).__name__} generates nothing")

    def record(self, request: Request, stages: Mapping[str, Any]) -> Record:
        """What a clip of this request is made from.

        Args:
            stages: what every stage did.
        """
        return Record(
            pipeline=self.name,
            request=request,
            max_batch_size=self.runtime.max_batch_size,
            threads=self.runtime.threads,
            kernels=self.runtime.kernels,
            bundle=self.source.bundle_id,
            stages=stages,
        )

    def clip_class(self, request: Request) -> type[Clip]:
        """What this pipeline makes of a request."""
        if request.config.hdr is None:
            return Clip
        from ltx2rt.results.hdr_clip import HlgClip

        return HlgClip

    def clip(
        self,
        run: Run,
        video: Array | None,
        audio: Array | None,
        *,
        frame_rate: float | None = None,
        waveform: tuple[NDArray[np.float32], int] | None = None,
        crop: tuple[int, int, int] | None = None,
        frame_step: int = 1,
        cut_audio: bool = False,
        hdr: HdrFormat | None = None,
    ) -> Clip:
        """The finished clip; the transformer is released.

        Args:
            video, audio: latents for the decoders, or None.
            frame_rate, waveform, crop, frame_step, cut_audio, hdr: see `Clip`.
        """
        self.engines.release(*TRANSFORMER)
        request, times = run.request, self._times_of(run)
        if run.sound is not None:
            audio, waveform = None, run.sound
        if video is not None:
            crop = crop or run.crop(video)
            tiling = chosen_tiling(self.source, run.config.tiling, video.shape[2:])
            config = dataclasses.replace(run.config, tiling=tiling)
            request = dataclasses.replace(request, config=config)
        return self.clip_class(run.request)(
            record=self.record(request, run.stages),
            job=run.job,
            latents=run.latents,
            video_latent=video,
            audio_latent=audio,
            decode_video=partial(decode_video, self.engines, run.generator.copy()),
            decode_audio=partial(decode_audio, self.engines),
            sound_is_apart=self.engines.sound_is_apart,
            scale_factors=self.scale_factors,
            sampling_rate=self.source.model.audio_sampling_rate,
            frame_rate=frame_rate or run.config.frame_rate,
            waveform=waveform,
            crop=crop,
            frame_step=frame_step,
            cut_audio=cut_audio,
            generators={**run.generators, DECODE: run.generator.state},
            hdr=hdr or run.hdr,
            saved=None if times is None else partial(_remember, *times),
            record_paths=self.runtime.record_paths if self.runtime.record else None,
        )

    def enhance_prompt(
        self, prompt: str, *, image: Path | None = None, seed: int = 10, job: Job | None = None
    ) -> str:
        """A short request written out as a description, by the bundle's own Gemma 3; for
        `GenerationConfig.prompt`, with the request as its `user_prompt`.

        Args:
            image: the clip's first frame; the model does not see it, but is told that there is one.
            seed: of its drawing of words.
            job: progress, and cancelling.

        Raises:
            UnsupportedError: the bundle has no model that writes, such as those of LTX-2.5.
            EnhanceError: the prompt is too long, or nothing usable came out.
        """
        with self.engines.turns.taken():
            return enhanced_by_own(self.engines, prompt, image, seed, job or Job())

    def save_embeddings(self, path: str | Path) -> None:
        """Write the text contexts of the last clip, for `GenerationConfig.embeddings`.

        Raises:
            OptionError: no prompt was encoded yet.
        """
        if self.engines.contexts is None:
            raise OptionError("there are no text contexts to save: generate a clip from a prompt.")
        prompts, loras, context = self.engines.contexts
        if loras:
            named = ", ".join(lora.path for lora in loras)
            raise OptionError(
                f"these text contexts were made with {named}, which changes the text connectors: "
                "they are not this model's; generate without it."
            )
        write_embeddings(path, context, prompts, self.source.text_encoder_id)

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """LoRAs of each stage."""
        return [request.config.loras, request.config.refine_loras][: 1 + self.two_stage]

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Refuse LoRAs that do not fit, before anything is loaded (`ModelLoader.check_loras`)."""
        if any(lora.strength for lora in loras):
            self.engines.loader.check_loras(loras)

    def _warn_of_late_connectors(self, request: Request, loras: Sequence[Lora]) -> None:
        """Prompts are encoded once, with the LoRAs of stage 1."""
        changing = self.engines.loader.text_loras(loras)
        for path in {lora.path for lora in changing} - {x.path for x in request.config.loras}:
            logger.warning(
                "%s changes the text connectors, but prompts are encoded before its stage: that "
                "part is left out",
                path,
            )


def pipeline_class(name: str) -> type[Pipeline]:
    """The class of a pipeline of `catalog.PIPELINES`."""
    found: type[Pipeline] = catalog_class(name)
    return found


def _remember(path: Path, kind: str, shape: tuple[int, int, int], job: Job) -> None:
    """Keep what the stages of a saved clip took, where that is known."""
    if (seconds := job.stage_seconds()) is not None:
        remember(path, ClipTimes(kind=kind, shape=shape, seconds=seconds))
