"""What every pipeline shares: engines loaded when needed, freed when their part is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ltx2rt.bundle import ModelSource
from ltx2rt.components.audio import AudioDecoder, AudioEncoder
from ltx2rt.components.diffusion_decoder import DIFFUSION_DECODER, DiffusionVideoDecoder
from ltx2rt.components.duration_head import DurationHead
from ltx2rt.components.embeddings import write_embeddings
from ltx2rt.components.prompt_encoder import PromptEncoder, TextContext
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.components.text_encoder import FULL_BLOCK, TEXT_ENCODER, TextEncoder
from ltx2rt.components.transformer import Transformer
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.conditioning import keyframe_indices
from ltx2rt.config import GenerationConfig, GuidanceConfig, RuntimeConfig
from ltx2rt.duration import AutoDuration
from ltx2rt.engine import Engine
from ltx2rt.errors import (
    BundleError,
    InternalError,
    OptionError,
    UnsupportedError,
    join_problems,
)
from ltx2rt.manifest import PLAIN_BLOCK, Lora
from ltx2rt.media.files import OutputKind
from ltx2rt.pipelines.checkpointing import StageStore
from ltx2rt.pipelines.exr_checks import exr_problems
from ltx2rt.pipelines.record import record_of
from ltx2rt.pipelines.request_checks import check_stage_options, with_embedded_prompts
from ltx2rt.pipelines.run import TRANSFORMER, Request, Run
from ltx2rt.progress import Job
from ltx2rt.shapes import VideoScaleFactors, check_generation_size
from ltx2rt.tiling import TilingConfig
from ltx2rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ltx2rt.pipelines.clip import Clip

__all__ = ["ONE_STAGE", "TEXT_ENCODER", "TRANSFORMER", "TWO_STAGE", "Pipeline"]

_DECODERS = ("video_decoder", "audio_decoder", "vocoder")
#: components of the text-to-clip pipelines
ONE_STAGE = (*TEXT_ENCODER, *TRANSFORMER, *_DECODERS)
TWO_STAGE = (*TEXT_ENCODER, *TRANSFORMER, "spatial_upsampler", *_DECODERS)


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
    #: one sentence for `ltx2rt pipelines`, where the docstring's first paragraph does not serve
    summary: ClassVar[str] = ""
    #: whether it samples with guidance (`GuidanceConfig`)
    guided: ClassVar[bool] = False
    #: whether stage 1 works at half size and a second stage refines it
    two_stage: ClassVar[bool] = False
    #: a frozen dataclass of what this pipeline takes besides `GenerationConfig`; None: nothing
    Inputs: ClassVar[type[Any] | None] = None
    #: height and width where none are asked for
    default_size: ClassVar[tuple[int, int]] = (1024, 1536)
    #: fields of `GenerationConfig` that mean nothing here; naming one is refused
    unused: ClassVar[tuple[str, ...]] = ()
    #: whether `num_frames` may be an `AutoDuration`
    auto_duration: ClassVar[bool] = False
    #: what a clip of it is: a picture (with sound), or sound alone
    makes: ClassVar[Literal["video", "audio"]] = "video"
    #: whether it writes EXR frames beside the video, whatever `hdr` says
    makes_exr: ClassVar[bool] = False
    #: whether it cannot do without a prompt
    needs_prompt: ClassVar[bool] = True
    #: whether height and width need not be multiples of the model's factor
    any_size: ClassVar[bool] = False

    def __init__(self, source: ModelSource, runtime: RuntimeConfig | None = None) -> None:
        # a request may bring its text contexts along: `prepare` looks for the text encoder
        self._refuse_missing([c for c in self.missing(source.has) if c not in TEXT_ENCODER])
        self.source = source
        self.runtime = runtime or RuntimeConfig()
        self._engines: dict[str, Engine] = {}
        self._transformer: Transformer | None = None
        self._loras: tuple[Lora, ...] = ()
        #: the last prompts and their contexts: encoded once for several clips
        self.contexts: tuple[tuple[str, ...], TextContext] | None = None

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
        **options: Any,
    ) -> Clip:
        """Generate one clip.

        Args:
            config: what to make; or pass its fields by keyword: `pipe(prompt="...", seed=42)`.
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
            OptionError: an option is not allowed, unknown or missing.
            CheckpointError, UnsupportedError: a LoRA does not fit, or the model cannot do it.
        """
        request = self.prepare(self.make_request(config, guidance, inputs, options))
        for loras in self.stage_loras(request):
            self.check_loras(loras)
        store = None
        if work_dir is not None:
            store = StageStore(work_dir, record_of(self, request, {}), resume=resume)
        return self.generate(Run(self, request, job or Job(), trace, store))

    def generate_many(
        self,
        seeds: Iterable[int],
        config: GenerationConfig | None = None,
        guidance: GuidanceConfig | None = None,
        inputs: Any = None,
        **options: Any,
    ) -> Iterator[Clip]:
        """One clip for every seed, made when it is asked for; prompts are encoded once.

        Arguments as a call's; save or decode a clip before the next one, or run with
        `residency="resident"`.
        """
        for seed in seeds:
            if config is None:
                yield self(None, guidance, inputs, seed=seed, **options)
            else:
                yield self(dataclasses.replace(config, seed=seed), guidance, inputs, **options)

    def generate(self, run: Run) -> Clip:
        """The pipeline itself, for a request that was checked."""
        raise InternalError(f"{type(self).__name__} generates nothing")

    def make_request(
        self,
        config: GenerationConfig | None,
        guidance: GuidanceConfig | None,
        inputs: Any,
        options: Mapping[str, Any],
    ) -> Request:
        """A request from objects and keywords; this pipeline's size where they name none.

        Raises:
            OptionError: keywords that nothing takes (all are named), or guidance or inputs that
                this pipeline does not take.
        """
        names = {f.name for f in dataclasses.fields(GenerationConfig)}
        own = {f.name for f in dataclasses.fields(self.Inputs)} if self.Inputs else set()
        problems = [f"{name} is not an option" for name in sorted(options.keys() - names - own)]
        problems += [f"it has no use for {n}" for n in self.unused if n in options]
        if config is not None:
            problems += [f"{n} was given beside config" for n in sorted(options.keys() & names)]
        if inputs is None:
            problems += [f"{n} is missing" for n in self.required_inputs() if n not in options]
        else:
            problems += [f"{n} was given beside inputs" for n in sorted(options.keys() & own)]
            if self.Inputs is None or not isinstance(inputs, self.Inputs):
                problems.append(f"inputs of type {type(inputs).__name__} are not for this pipeline")
        if guidance is not None and not self.guided:
            problems.append("it takes no guidance: use a guided pipeline (one-stage, two-stage)")
        if problems:
            raise OptionError(join_problems(f"the {self.name} pipeline cannot generate", problems))
        if config is None:
            height, width = self.default_size
            given = {k: v for k, v in options.items() if k in names}
            config = GenerationConfig(**{"height": height, "width": width, **given})
        if inputs is None and self.Inputs is not None:
            inputs = self.Inputs(**{k: v for k, v in options.items() if k in own})
        return Request(config=config, guidance=guidance, inputs=inputs)

    def prepare(self, request: Request) -> Request:
        """The request with every default filled in, checked before anything is loaded."""
        config = request.config
        problems = []
        if self.needs_prompt and not config.prompt.strip() and config.embeddings is None:
            problems.append("the prompt is empty; describe the clip in a sentence")
        problems += [
            f"it has no use for {name}"
            for name in ("images", "generated_keyframes", "hdr")
            if name in self.unused and getattr(config, name)
        ]
        problems += exr_problems(request, takes_hdr="hdr" not in self.unused)
        if problems:
            raise OptionError(join_problems(f"the {self.name} pipeline cannot generate", problems))
        self._check_duration(config)
        if self.makes == "video":
            self._check_size(config)
            if not self.source.has(*DIFFUSION_DECODER):
                TilingConfig.parse(config.tiling).check(self.scale_factors)
        self.check_keyframes(config)
        check_stage_options(config, self.name, guided=self.guided, two_stage=self.two_stage)
        if config.embeddings is not None:
            return with_embedded_prompts(request, self.source)
        self._refuse_missing([c for c in self.missing(self.source.has) if c in TEXT_ENCODER])
        return request

    def save_embeddings(self, path: str | Path) -> None:
        """Write the text contexts of the last clip, for `GenerationConfig.embeddings`.

        Raises:
            OptionError: no prompt was encoded yet.
        """
        if self.contexts is None:
            raise OptionError("there are no text contexts to save: generate a clip from a prompt.")
        prompts, context = self.contexts
        write_embeddings(path, context, prompts, self.source.text_encoder_id)

    def _check_size(self, config: GenerationConfig) -> None:
        frames = 1 if isinstance(config.num_frames, AutoDuration) else config.num_frames
        height, width = config.height, config.width
        if self.any_size:
            step = self.scale_factors.height * (2 if self.two_stage else 1)
            height, width = height + -height % step, width + -width % step
        check_generation_size(height, width, frames, self.two_stage, self.scale_factors)

    def _check_duration(self, config: GenerationConfig) -> None:
        if not isinstance(config.num_frames, AutoDuration):
            return
        if not self.auto_duration:
            raise OptionError(
                f"the {self.name} pipeline cannot choose its duration; give num_frames as a number."
            )
        if not self.source.has("duration_head"):
            raise UnsupportedError(
                f"an automatic duration needs a duration head, which this bundle of "
                f"{self.source.model.generation} does not hold; give num_frames as a number, or "
                "build an LTX-2.5 bundle with one (ltx2rt build --duration-head FILE)."
            )
        limit = config.num_frames.limits(config.frame_rate)[1]
        late = [i for i in config.images if i.frame >= limit]
        if late:
            raise OptionError(
                f"image {late[0].path} is placed at frame {late[0].frame}; the clip has at most "
                f"{limit} frames."
            )

    def check_keyframes(self, config: GenerationConfig) -> None:
        """Refuse generated keyframes that this model or this clip cannot have.

        Raises:
            UnsupportedError: the model has no keyframe embedding.
            OptionError: the frames do not lie in the clip.
        """
        if not config.generated_keyframes:
            return
        if not self.source.options("transformer_block")["keyframes_embedding"]:
            raise UnsupportedError(
                f"generated keyframes were asked for, which {self.source.model.generation} cannot "
                "make: its transformer has no keyframe embedding; use an LTX-2.5 model, or ask for "
                "none."
            )
        if isinstance(config.num_frames, int):
            keyframe_indices(config.generated_keyframes, config.num_frames)

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """LoRAs of each stage."""
        return [request.config.loras]

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """What a clip of these `Inputs` can be saved as."""
        return (cls.makes,)

    @classmethod
    def required_inputs(cls) -> list[str]:
        """The fields of `Inputs` that have no default."""
        absent = dataclasses.MISSING
        fields = dataclasses.fields(cls.Inputs) if cls.Inputs else ()
        return [f.name for f in fields if f.default is absent and f.default_factory is absent]

    @classmethod
    def missing(cls, has: Callable[..., bool]) -> list[str]:
        """Components this pipeline needs that a source with this `has` does not hold."""
        missing = [c for c in cls.requires if not has(c)]
        if has(*DIFFUSION_DECODER):
            missing = [c for c in missing if c != "video_decoder"]
        return missing

    def _refuse_missing(self, missing: Sequence[str]) -> None:
        if missing:
            raise BundleError(
                f"the {self.name} pipeline needs {', '.join(missing)}, which this bundle does not "
                "hold; build it again with the files that hold them (`ltx2rt inspect BUNDLE` lists "
                "what it has)."
            )

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
        """Tokenizer and text encoder. Unless engines stay resident, a layer's weights are let go
        as soon as it has run.
        """
        source, keep = self.source, self.runtime.residency == "resident"
        names = [name for name in ("text_block", FULL_BLOCK) if source.has(name)]
        encoder = TextEncoder(
            self.engine("text_head"),
            {name: (self.engine(name), source.layers(name, keep=keep)) for name in names},
            self.engine("text_tail"),
            source.layers("text_head", keep=keep),
            source.options("text_head"),
        )
        return PromptEncoder(Tokenizer.from_file(source.tokenizer_path()), encoder)

    def duration_head(self) -> DurationHead:
        return DurationHead(self.engine("duration_head"))

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

    def audio_encoder(self) -> AudioEncoder:
        options = self.source.options("audio_encoder")
        return AudioEncoder(
            self.engine("audio_encoder"), options["sampling_rate"], options["n_fft"]
        )

    def audio_decoder(self) -> AudioDecoder:
        return AudioDecoder(
            self.engine("audio_decoder"),
            self.engine("vocoder"),
            self.source.model.audio_sampling_rate,
        )

    def upsampler(self, name: str) -> LatentUpsampler:
        """`spatial_upsampler` or `temporal_upsampler`."""
        return LatentUpsampler.from_options(self.engine(name), self.source.options(name))

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Refuse LoRAs that do not fit, before anything is loaded (`ModelSource.check_loras`)."""
        if any(lora.strength for lora in loras):
            self.source.check_loras(loras)
