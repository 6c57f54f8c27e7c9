"""What goes into the stages of a generation: text contexts, images, references, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ltx2rt.components.diffusion_stage import (
    ModalityRequest,
)
from ltx2rt.components.embeddings import read_embeddings
from ltx2rt.components.image_conditioner import EncodedImage, encode_images
from ltx2rt.components.prompt_encoder import TextContext
from ltx2rt.components.reference_conditioner import ReferenceFile, reference_item
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.engine import Array
from ltx2rt.errors import InternalError
from ltx2rt.latents.conditioning import ConditioningItem, GeneratedKeyframes, keyframe_indices
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx2rt.media.hdr import HDR_FORMATS, HdrFormat
from ltx2rt.names import DURATION_HEAD, TEXT_BLOCK_FULL, TEXT_ENCODER, TEXT_HEAD, VIDEO_ENCODER
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.request_checks import check_keyframes
from ltx2rt.progress import Job
from ltx2rt.sampling.noise import TorchGenerator

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline
    from ltx2rt.pipelines.checkpointing import StageStore


class RunInputs:
    """One generation: what was asked, and what goes into its stages.

    Args:
        pipeline: owns the engines.
        request: checked, defaults filled in.
        trace: collects intermediate tensors (parity tests).
        store: keeps finished stages, and has those of a run that was cut off.

    Attributes:
        generator: the pipeline's random generator, seeded with the request's seed; its order of
            draws is part of the result (spec/sampling.md §8).
        canvas: the clip that stages work on; a pipeline sets it where that is larger, longer or
            faster than what was asked for. An automatic duration is one frame until `encode`.
        latents: `stage_1.video`, `stage_1.audio`, `upsampled.video`, ... as they were made.
        stages: what every stage did: its sigmas, sampler and LoRAs.
        upsampled: how often a latent was upsampled.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        request: Request,
        job: Job,
        trace: StageTrace | None = None,
        store: StageStore | None = None,
    ) -> None:
        self.pipeline = pipeline
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
    def hdr(self) -> HdrFormat | None:
        """What the EXR files of this clip hold; None for one of ordinary range."""
        return HDR_FORMATS[self.config.hdr] if self.config.hdr else None

    @property
    def guidance(self) -> GuidanceConfig:
        """How guided pipelines sample; their `prepare` fills it in."""
        assert self.request.guidance is not None
        return self.request.guidance

    def encode(self, prompts: Sequence[str]) -> TextContext:
        """Contexts of prompts, the first of which describes the clip; the text encoder is
        released. They come from the request's embeddings if it names some, from the clip before
        if its prompts were the same, or from a run that was cut off. An automatic duration is
        predicted from them: from here on, `config` has a number.

        Raises:
            OptionError: an image is placed behind the end of the predicted clip.
        """
        embeddings, pipeline, key = self.config.embeddings, self.pipeline, tuple(prompts)
        if embeddings is not None:
            context = self._ready(lambda: read_embeddings(embeddings, len(prompts)))
        elif (known := pipeline.contexts) is not None and known[0] == key:
            context = self._ready(lambda: known[1])
        else:
            context = self._encoded(prompts)
            pipeline.contexts = key, context
        if self.trace is not None:
            self.trace.tensors["context.video"] = context.video[:1]
            self.trace.tensors["context.audio"] = context.audio[:1]
        if isinstance(self.config.num_frames, AutoDuration):
            self._predict_duration(self.config.num_frames, context)
        return context

    def _ready(self, context: Callable[[], TextContext]) -> TextContext:
        """Contexts that need no text encoder."""
        self.job.report("prompt", 0, 1)
        ready = context()
        self.job.report("prompt", 1, 1)
        return ready

    def _encoded(self, prompts: Sequence[str]) -> TextContext:
        facts = {"prompts": list(prompts)}
        kept = None if self.store is None else self.store.load("context", facts)
        if kept is not None:
            return self._ready(lambda: TextContext(kept["video"], kept["audio"]))
        encoder = self.pipeline.prompt_encoder()
        layers = len(self.pipeline.source.options(TEXT_HEAD)["layers"])
        self.job.report("prompt", 0, layers)
        context = encoder(prompts, lambda done, total: self.job.report("prompt", done, total))
        self.pipeline.release(*TEXT_ENCODER, TEXT_BLOCK_FULL)
        if self.store is not None:
            self.store.save("context", facts, {"video": context.video, "audio": context.audio})
        return context

    def _predict_duration(self, asked: AutoDuration, context: TextContext) -> None:
        self.job.report("duration", 0, 1)
        audio_only = self.pipeline.makes == "audio"
        seconds = self.pipeline.duration_head()(context, audio_only=audio_only)
        self.pipeline.release(DURATION_HEAD)
        frames = asked.frames(seconds, self.config.frame_rate)
        self.request = replace(self.request, config=replace(self.config, num_frames=frames))
        self.canvas = replace(self.canvas, num_frames=frames)
        self.job.report("duration", 1, 1, f"{frames} frames")

    def keyframe_items(self) -> list[ConditioningItem]:
        """The slots of generated keyframes, for stage 1 after the images; [] if none are asked for.
        Prompts are encoded before: the duration must be known.

        Raises:
            UnsupportedError, OptionError: see `check_keyframes`.
        """
        check_keyframes(self.pipeline.source, self.config)
        indices = keyframe_indices(self.config.generated_keyframes, self.config.frame_count)
        if not indices:
            return []
        return [GeneratedKeyframes(frame_indices=indices)]

    def image_items(
        self, divisors: Mapping[str, int], *, guiding: bool = False
    ) -> dict[str, list[ConditioningItem]]:
        """The images as conditioning of each stage (`encode_images`).

        Args:
            guiding: attach every image as a keyframe, also one at frame 0.
        """
        encoded = self.encode_images(divisors)
        return {k: [image.item(guiding=guiding) for image in v] for k, v in encoded.items()}

    def encode_images(self, divisors: Mapping[str, int]) -> dict[str, list[EncodedImage]]:
        """The images at the size of each stage; the video encoder is released.

        Args:
            divisors: stage name -> by what its height and width are smaller than the clip's.
        """
        encoded: dict[str, list[EncodedImage]] = {stage: [] for stage in divisors}
        for stage, divisor in divisors.items() if self.config.images else ():
            self.job.report(f"images {stage}", 0, 1)
            encoded[stage] = encode_images(
                self.config.images,
                self.pipeline.video_encoder(),
                self.canvas.height // divisor,
                self.canvas.width // divisor,
                self.pipeline.source.model.image_crf,
                self.hdr,
            )
            self.job.report(f"images {stage}", 1, 1)
        self.pipeline.release(VIDEO_ENCODER)
        return encoded

    def reference_items(
        self, stage: str, references: Sequence[ReferenceFile], divisor: int = 1, **facts: Any
    ) -> list[ConditioningItem]:
        """Reference videos as conditioning of a stage; the video encoder is released.

        Args:
            stage: its name, for progress.
            divisor: by what its height and width are smaller than the clip's.
            facts: further arguments of `reference_item`.
        """
        items: list[ConditioningItem] = []
        for index, reference in enumerate(references):
            self.job.report(f"references {stage}", index, len(references))
            encoder = self.pipeline.video_encoder()
            items.append(
                reference_item(reference, encoder, self.pixels(divisor), hdr=self.hdr, **facts)
            )
            self.job.report(f"references {stage}", index + 1, len(references))
        self.pipeline.release(VIDEO_ENCODER)
        return items

    def pixels(self, divisor: int = 1) -> VideoPixelShape:
        """The canvas, its height and width divided.

        Raises:
            InternalError: an automatic duration that `encode` did not predict yet.
        """
        if isinstance(self.config.num_frames, AutoDuration):
            raise InternalError("the length of the clip was asked for before it was predicted")
        return VideoPixelShape(
            num_frames=self.canvas.num_frames,
            height=self.canvas.height // divisor,
            width=self.canvas.width // divisor,
            frame_rate=self.canvas.frame_rate,
        )

    def video(self, divisor: int = 1, **facts: Any) -> ModalityRequest[VideoLatentShape]:
        """The video of a stage at the clip's size over `divisor`; `facts` are further fields."""
        shape = VideoLatentShape.from_pixel_shape(
            self.pixels(divisor),
            self.pipeline.source.model.latent_channels,
            self.pipeline.scale_factors,
        )
        return ModalityRequest(shape=shape, **facts)

    def video_part(self, latent: Array, **facts: Any) -> ModalityRequest[VideoLatentShape]:
        """The video of a stage that goes on from a part of the clip, of the part's size; `facts`
        are further fields.
        """
        shape = VideoLatentShape.from_sizes(latent.shape)
        return ModalityRequest(shape=shape, initial=latent, **facts)

    def audio(self, **facts: Any) -> ModalityRequest[AudioLatentShape]:
        """The audio of a stage, as long as the clip; `facts` are further fields."""
        model = self.pipeline.source.model
        shape = AudioLatentShape.from_duration(
            self.pixels().duration_s, channels=model.audio_channels, mel_bins=model.audio_bins
        )
        return ModalityRequest(shape=shape, **facts)
