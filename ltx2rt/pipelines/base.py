"""What every pipeline shares: engines loaded when needed, freed when their part is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ltx2rt.bundle import ModelSource
from ltx2rt.components.audio import AudioDecoder
from ltx2rt.components.diffusion_decoder import DIFFUSION_DECODER, DiffusionVideoDecoder
from ltx2rt.components.diffusion_stage import StageRequest
from ltx2rt.components.image_conditioner import image_items
from ltx2rt.components.prompt_encoder import PromptEncoder, TextContext
from ltx2rt.components.transformer import Transformer
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.conditioning import ConditioningItem, GeneratedKeyframes, keyframe_indices
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array, Engine
from ltx2rt.errors import BundleError, InternalError, UnsupportedError
from ltx2rt.manifest import PLAIN_BLOCK, Lora
from ltx2rt.progress import Job
from ltx2rt.shapes import (
    AudioLatentShape,
    VideoLatentShape,
    VideoPixelShape,
    VideoScaleFactors,
)
from ltx2rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ltx2rt.pipelines.clip import Clip

TRANSFORMER = ("transformer_head", "transformer_block", "transformer_tail")


class Pipeline:
    """Base of the pipelines: a context manager that owns engines.

    Args:
        source: an opened bundle.
        runtime: how to run.

    Raises:
        BundleError: the bundle lacks components that this pipeline needs; all are named.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    #: height and width where none are asked for
    default_size: ClassVar[tuple[int, int]] = (1024, 1536)

    def __init__(self, source: ModelSource, runtime: RuntimeConfig | None = None) -> None:
        missing = self.missing(source.has)
        if missing:
            raise BundleError(
                f"the {self.name} pipeline needs {', '.join(missing)}, which this bundle does not "
                "hold; build it again with the files that hold them (`ltx2rt inspect BUNDLE` lists "
                "what it has)."
            )
        self.source = source
        self.runtime = runtime or RuntimeConfig()
        self._engines: dict[str, Engine] = {}
        self._transformer: Transformer | None = None
        self._loras: tuple[Lora, ...] = ()

    def __call__(self, *args: Any, **options: Any) -> Clip:
        """Generate one clip; every pipeline says what it takes."""
        raise InternalError(f"{type(self).__name__} generates nothing")

    @classmethod
    def missing(cls, has: Callable[..., bool]) -> list[str]:
        """Components this pipeline needs that a source with this `has` does not hold."""
        missing = [c for c in cls.requires if not has(c)]
        if has(*DIFFUSION_DECODER):
            missing = [c for c in missing if c != "video_decoder"]
        return missing

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
        self._transformer = None
        while self._engines:
            self._engines.popitem()[1].close()

    def engine(self, name: str, loras: Sequence[Lora] = ()) -> Engine:
        """A component's engine, loaded on first use."""
        if name not in self._engines:
            self._engines[name] = self.source.engine(name, self.runtime, loras)
        return self._engines[name]

    def release(self, *names: str) -> None:
        """These parts are done for this clip: free them unless engines stay resident."""
        if self.runtime.residency == "resident":
            return
        if set(names) & set(TRANSFORMER):
            self._transformer = None
            names = (*names, PLAIN_BLOCK)
        self._close(*names)

    def _close(self, *names: str) -> None:
        for name in names:
            engine = self._engines.pop(name, None)
            if engine is not None:
                engine.close()

    @property
    def scale_factors(self) -> VideoScaleFactors:
        model = self.source.model
        return VideoScaleFactors(model.time_scale, model.spatial_scale, model.spatial_scale)

    def prompt_encoder(self) -> PromptEncoder:
        """Tokenizer and text encoder."""
        tokenizer = Tokenizer.from_file(self.source.tokenizer_path())
        return PromptEncoder(tokenizer, self.engine("text_encoder"))

    def transformer(self, loras: Sequence[Lora] = ()) -> Transformer:
        """The diffusion transformer with LoRAs merged; one object for all stages that want the
        same ones, so that its tables are cached. Only one set of merged weights is held.
        """
        active = tuple(lora for lora in loras if lora.strength)
        if self._transformer is None or self._loras != active:
            self._transformer = None
            self._close("transformer_head", "transformer_tail")  # the block engine has no weights
            head, block, tail = (self.engine(name, active) for name in TRANSFORMER)
            plain = None
            if self.source.has(PLAIN_BLOCK):
                plain = (self.engine(PLAIN_BLOCK), self.source.layers(PLAIN_BLOCK, active))
            self._loras = active
            self._transformer = Transformer(
                head,
                block,
                tail,
                self.source.layers("transformer_block", active),
                self.source.options("transformer_block"),
                plain,
            )
        return self._transformer

    def video_encoder(self) -> VideoEncoder:
        return VideoEncoder.from_options(
            self.engine("video_encoder"), self.source.options("video_encoder")
        )

    def video_decoder(self) -> VideoDecoder | DiffusionVideoDecoder:
        """The decoder that the bundle holds."""
        if self.source.has(*DIFFUSION_DECODER):
            features, context, pixels = (self.engine(name) for name in DIFFUSION_DECODER)
            options = self.source.options("diffusion_features")
            return DiffusionVideoDecoder(features, context, pixels, options)
        return VideoDecoder.from_options(
            self.engine("video_decoder"), self.source.options("video_decoder")
        )

    def audio_decoder(self) -> AudioDecoder:
        return AudioDecoder(
            self.engine("audio_decoder"),
            self.engine("vocoder"),
            self.source.model.audio_sampling_rate,
        )

    def spatial_upsampler(self) -> LatentUpsampler:
        return LatentUpsampler.from_options(
            self.engine("spatial_upsampler"), self.source.options("spatial_upsampler")
        )

    def make_config(self, options: Mapping[str, Any]) -> GenerationConfig:
        """A request from keywords; this pipeline's size where they name none."""
        height, width = self.default_size
        return GenerationConfig(**{"height": height, "width": width, **options})

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Refuse LoRAs that do not fit, before anything is loaded (`ModelSource.check_loras`)."""
        if any(lora.strength for lora in loras):
            self.source.check_loras(loras)

    def encode(self, prompts: Sequence[str], job: Job) -> TextContext:
        """Contexts of prompts; the text encoder is released."""
        job.report("prompt", 0, 1)
        context = self.prompt_encoder()(prompts)
        self.release("text_encoder")
        job.report("prompt", 1, 1)
        return context

    def keyframe_items(self, config: GenerationConfig) -> list[ConditioningItem]:
        """The slots of generated keyframes, for stage 1 after the images; [] if none are asked for.

        Raises:
            UnsupportedError: the model has no keyframe embedding.
            OptionError: the frames do not lie in the clip.
        """
        indices = keyframe_indices(config.generated_keyframes, config.num_frames)
        if not indices:
            return []
        if not self.source.options("transformer_block")["keyframes_embedding"]:
            raise UnsupportedError(
                f"generated keyframes were asked for, which {self.source.model.generation} cannot "
                "make: its transformer has no keyframe embedding; use an LTX-2.5 model, or ask for "
                "none."
            )
        return [GeneratedKeyframes(frame_indices=indices)]

    def image_items(
        self,
        config: GenerationConfig,
        divisors: Mapping[str, int],
        job: Job,
        *,
        guiding: bool = False,
    ) -> dict[str, list[ConditioningItem]]:
        """The images as conditioning of each stage; the video encoder is released.

        Args:
            divisors: stage name -> by what its height and width are smaller than the clip's.
            guiding: attach every image as a keyframe, also one at frame 0.
        """
        items: dict[str, list[ConditioningItem]] = {stage: [] for stage in divisors}
        for stage, divisor in divisors.items() if config.images else ():
            job.report(f"images {stage}", 0, 1)
            items[stage] = image_items(
                config.images,
                self.video_encoder(),
                config.height // divisor,
                config.width // divisor,
                self.source.model.image_crf,
                guiding=guiding,
            )
            job.report(f"images {stage}", 1, 1)
        self.release("video_encoder")
        return items

    def stage(
        self, config: GenerationConfig, name: str, divisor: int, **facts: Any
    ) -> StageRequest:
        """A stage at the clip's size over `divisor`; `facts` are further `StageRequest` fields."""
        model = self.source.model
        pixels = VideoPixelShape(
            num_frames=config.num_frames,
            height=config.height // divisor,
            width=config.width // divisor,
            frame_rate=config.frame_rate,
        )
        return StageRequest(
            name=name,
            pixels=pixels,
            video_shape=VideoLatentShape.from_pixel_shape(
                pixels, model.latent_channels, self.scale_factors
            ),
            audio_shape=AudioLatentShape.from_duration(
                pixels.duration_s, channels=model.audio_channels, mel_bins=model.audio_bins
            ),
            scale_factors=self.scale_factors,
            **facts,
        )

    def upsample(self, video: Array, job: Job) -> Array:
        """A video latent at twice its height and width; the upsampler is released."""
        job.report("upsample", 0, 1)
        upsampled = self.spatial_upsampler()(video)
        self.release("spatial_upsampler")
        job.report("upsample", 1, 1)
        return upsampled
