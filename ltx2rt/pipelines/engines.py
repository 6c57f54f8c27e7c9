"""The engines of a pipeline: loaded when needed, freed when their part is done, each behind the
class that gives it its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from ltx2rt.backends.device_stack import DeviceStack
from ltx2rt.backends.device_steps import DeviceSteps
from ltx2rt.backends.stack import Stack
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.request_sizes import RequestSizes
from ltx2rt.bundle.source import ModelFacts, ModelLoader, ModelSource
from ltx2rt.components.audio import AudioDecoder, AudioEncoder
from ltx2rt.components.diffusion_decoder import DiffusionVideoDecoder
from ltx2rt.components.duration_head import DurationHead
from ltx2rt.components.language_model import MULTIPLE, LanguageModel
from ltx2rt.components.preview import LatentColours, fit_colours, read_colours, write_colours
from ltx2rt.components.text_encoder import PromptEncoder, TextContext, TextEncoder
from ltx2rt.components.tokenizer import MAX_TOKENS, Tokenizer
from ltx2rt.components.transformer import Transformer
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Engine
from ltx2rt.env import cache_dir
from ltx2rt.errors import EngineError, OptionError, UnsupportedError
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.lora.files import Lora
from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DECODE,
    DEVICE_FRAMES,
    DEVICE_STEPS,
    DIFFUSION_DECODER,
    DIFFUSION_FEATURES,
    DURATION_HEAD,
    LANGUAGE_HEAD,
    TEXT_BLOCK_FULL,
    TEXT_STACK,
    TRANSFORMER,
    TRANSFORMER_BLOCK,
    TRANSFORMER_STACK,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VOCODER,
    WRITING_STACK,
    StackNames,
)
from ltx2rt.pipelines.built_sizes import built_buckets
from ltx2rt.pipelines.turns import Turns

#: what makes frames and sound of a finished clip
_DECODERS = {VIDEO_DECODER, AUDIO_DECODER, VOCODER, *DIFFUSION_DECODER, *DEVICE_FRAMES}


class Engines:
    """Owns the engines of one pipeline.

    Args:
        source: an opened bundle, or what stands for one.
        runtime: how to run.
    """

    def __init__(self, source: Bundle | ModelSource, runtime: RuntimeConfig | None = None) -> None:
        self.source: ModelFacts = source
        self.loader: ModelLoader = Loader(source) if isinstance(source, Bundle) else source
        self.runtime = runtime or RuntimeConfig()
        self._engines: dict[str, Engine] = {}
        self._stacks: dict[StackNames, Stack] = {}
        self._tokenizer: Tokenizer | None = None
        self._transformer: Transformer | None = None
        self._colours: LatentColours | None = None
        self._loras: tuple[Lora, ...] = ()
        self._text_loras: tuple[Lora, ...] = ()
        self.turns = Turns()
        self._sound_turns = Turns()
        self._picture_turns = Turns()
        self._ahead: list[Callable[[], None]] = []
        #: the stage that has the GPU, where it has room for one at a time; None for all
        self._stage: str | None = None
        self._decoding = 0
        #: whose text encoder is this one's too, if it has none of its own
        self.text_from: Engines | None = None
        #: the last prompts, the LoRAs that changed connectors or projections, and the contexts:
        #: encoded once for several clips
        self.contexts: tuple[tuple[str, ...], tuple[Lora, ...], TextContext] | None = None

    @property
    def on_host(self) -> bool:
        """Whether everything lies in this machine's memory, and none of it on a GPU."""
        source = self.source
        if not isinstance(source, Bundle) or self.runtime.device is not None:
            return False
        return source.manifest.backend not in APIS

    def close(self) -> None:
        """Free every engine; clips that are not decoded yet cannot be decoded afterwards."""
        for drop in list(self._ahead):
            drop()
        self.turns.close()
        self._sound_turns.close()
        self._picture_turns.close()
        for names in list(self._stacks):
            self._release_stack(names)
        while self._engines:
            self._engines.popitem()[1].close()
        if isinstance(self.loader, Loader):
            self.loader.close()

    def plan_for(self, sizes: RequestSizes | None) -> None:
        """See `Loader.plan_for`."""
        if isinstance(self.loader, Loader):
            self.loader.plan_for(sizes)

    def engine(self, name: str) -> Engine:
        """A component's engine, loaded on first use."""
        if name not in self._engines:
            self._make_room(name)
            self._engines[name] = self.loader.engine(name, self.runtime)
        return self._engines[name]

    @contextmanager
    def run(self) -> Iterator[None]:
        """Other threads wait. What ends early (cancelled, an error) frees the transformer and what
        stands beside it, unless engines stay resident: the next clip has the memory that was
        planned for it. Decoders may still be at an earlier clip.

        Raises:
            OptionError: the pipeline is closed.
        """
        with self.turns.taken():
            try:
                yield
            except BaseException:
                begun = [n for n in self._engines if n not in _DECODERS]
                with suppress(EngineError):  # of a GPU that is lost: what ended it says more
                    self.release(*TRANSFORMER, *begun)
                raise

    @contextmanager
    def decoding(self, *names: str) -> Iterator[None]:
        """Frames are made by these engines, one chunk after another; they are released, also where
        nobody wanted the rest of them.
        """
        self._decoding += 1
        try:
            yield
        finally:
            self._decoding -= 1
            self.release(*names)

    def _make_room(self, name: str) -> None:
        """Where a GPU has room for one stage at a time, free what others have loaded.

        Raises:
            OptionError: one of them is not done.
        """
        if not isinstance(self.loader, Loader):
            return
        stage = self.loader.stage_of(name, self.runtime)
        if stage == self._stage:
            return
        if self._decoding and self._stage == DECODE:
            raise OptionError(
                "this GPU has room for one stage at a time: decode the clip before to its last "
                "frame, or close its frames, before the next one begins."
            )
        for names in list(self._stacks):
            self._release_stack(names)
        while self._engines:
            self._engines.popitem()[1].close()
        self._stage = stage

    def release(self, *names: str) -> None:
        """These parts are done for this clip: free them unless engines stay resident."""
        if self.runtime.residency == "resident":
            return
        if self.text_from is not None:
            self.text_from.release(*names)
        for stack in list(self._stacks):
            if set(names) & set(stack.components):
                self._release_stack(stack)
        for name in names:
            engine = self._engines.pop(name, None)
            if engine is not None:
                engine.close()

    def _release_stack(self, names: StackNames) -> None:
        """Free a stack, whatever the residency: other weights follow, or the end."""
        if names == TRANSFORMER_STACK:
            self._transformer = None
            for name in DEVICE_STEPS:
                if (engine := self._engines.pop(name, None)) is not None:
                    engine.close()
        stack = self._stacks.pop(names, None)
        if stack is not None:
            stack.close()

    def _stack(self, names: StackNames, loras: Sequence[Lora] = ()) -> Stack:
        if names not in self._stacks:
            self._make_room(names.head)
            self._stacks[names] = self.loader.stack(names, self.runtime, loras)
        return self._stacks[names]

    @property
    def scale_factors(self) -> VideoScaleFactors:
        model = self.source.model
        return VideoScaleFactors(model.time_scale, model.spatial_scale, model.spatial_scale)

    def prompt_encoder(self, loras: Sequence[Lora] = ()) -> PromptEncoder:
        """Tokenizer and text encoder, with LoRAs merged into connectors and projections. Unless
        engines stay resident, a layer's weights are let go as soon as it has run.
        """
        if self.text_from is not None:
            return self.text_from.prompt_encoder(loras)
        if self._text_loras != tuple(loras):
            self._release_stack(TEXT_STACK)
            self._text_loras = tuple(loras)
        return PromptEncoder(self.tokenizer(), TextEncoder(self._stack(TEXT_STACK, loras)))

    @contextmanager
    def language_model(self) -> Iterator[LanguageModel]:
        """The text encoder as a model that writes; its layers are freed afterwards, and those of
        other stacks before: while it writes, its own stay.

        Raises:
            UnsupportedError: the bundle's text encoder writes nothing.
        """
        source = self.source
        if not source.has(*(n for n in WRITING_STACK.components if n != TEXT_BLOCK_FULL)):
            raise UnsupportedError(
                f"this bundle cannot enhance prompts by itself: it holds no {LANGUAGE_HEAD}, which "
                "bundles with a Gemma 3 have when they are built with all components (Gemma 4 of "
                "LTX-2.5 only encodes); build it again, or name another model."
            )
        for names in list(self._stacks):
            self._release_stack(names)
        self._make_room(LANGUAGE_HEAD)
        has_engines = isinstance(source, Bundle) and source.component(LANGUAGE_HEAD).engines
        multiple = MAX_TOKENS if has_engines else MULTIPLE
        with closing(self.loader.stack(WRITING_STACK, self.runtime)) as stack:
            yield LanguageModel(stack, self.tokenizer(), multiple=multiple)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder, read once."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(self.source.tokenizer_path())
        return self._tokenizer

    def duration_head(self) -> DurationHead:
        return DurationHead(self.engine(DURATION_HEAD))

    def transformer(self, loras: Sequence[Lora] = ()) -> Transformer:
        """The diffusion transformer with LoRAs merged; one object for all stages that want the
        same ones. Only one set of merged weights is held.
        """
        active = tuple(lora for lora in loras if lora.strength)
        if self._transformer is None or self._loras != active:
            self._release_stack(TRANSFORMER_STACK)
            stack = self._stack(TRANSFORMER_STACK, active)
            self._loras = active
            options = self.source.options(TRANSFORMER_BLOCK)
            self._transformer = Transformer(stack, options, self._steps(stack))
        return self._transformer

    def _steps(self, stack: Stack) -> DeviceSteps | None:
        """What takes steps beside a stack; None where it is on no device of its own, or the bundle
        was built before there was such a thing.
        """
        if not isinstance(stack, DeviceStack) or not self.source.has(*DEVICE_STEPS):
            return None
        euler, noisy = (self.engine(name) for name in DEVICE_STEPS)
        if not isinstance(euler, TrtEngine) or not isinstance(noisy, TrtEngine):
            return None
        return DeviceSteps(euler, noisy)

    def video_encoder(self) -> VideoEncoder:
        return VideoEncoder.from_options(
            self.engine(VIDEO_ENCODER), self.source.options(VIDEO_ENCODER)
        )

    def latent_colours(self) -> LatentColours:
        """Colours of this model's latents, fitted once on a machine.

        Raises:
            UnsupportedError: there is no video encoder to fit them to, or it takes no squares.
        """
        if self._colours is None:
            if not self.source.has(VIDEO_ENCODER):
                raise UnsupportedError(
                    f"a preview needs the {VIDEO_ENCODER}, which this bundle does not hold; build "
                    "it again with all components, or leave the preview out."
                )
            self._colours = self._known_colours()
        return self._colours

    def _known_colours(self) -> LatentColours:
        """Those that were kept for this encoder, or new ones, which are kept for the next time."""
        path = None
        if isinstance(self.source, Bundle):
            name = f"{self.source.state_of(VIDEO_ENCODER)}.json"
            path = cache_dir() / "colours" / name
            if (kept := read_colours(path)) is not None:
                return kept
        buckets = built_buckets(self.source, VIDEO_ENCODER)

        def takes(frames: int, height: int, width: int) -> bool:
            sizes = {"F": frames, "H": height, "W": width}
            return not buckets or any(bucket.holds(sizes) for bucket in buckets)

        colours = fit_colours(self.video_encoder(), takes)
        self.release(VIDEO_ENCODER)
        if path is not None:
            write_colours(path, colours)
        return colours

    def video_decoder(self) -> VideoDecoder | DiffusionVideoDecoder:
        """The decoder that the bundle holds."""
        if self.source.has(*DIFFUSION_DECODER):
            features, context, pixels = (self.engine(name) for name in DIFFUSION_DECODER)
            options = self.source.options(DIFFUSION_FEATURES)
            return DiffusionVideoDecoder(features, context, pixels, options)
        return VideoDecoder.from_options(
            self.engine(VIDEO_DECODER), self.source.options(VIDEO_DECODER)
        )

    def sound_is_apart(self) -> bool:
        """Whether sound is decoded beside everything else, on a stream and in memory of its own."""
        return isinstance(self.loader, Loader) and self.loader.sound_is_apart(self.runtime)

    def sound_turns(self) -> Turns:
        """What keeps decoders of sound to one thread at a time."""
        return self._sound_turns if self.sound_is_apart() else self.turns

    def picture_is_apart(self) -> bool:
        """Whether pictures are decoded beside everything else, as sound may be: the next clip is
        encoded and denoised meanwhile.
        """
        return isinstance(self.loader, Loader) and self.loader.picture_is_apart(self.runtime)

    def begun_ahead(self, drop: Callable[[], None]) -> Callable[[], None]:
        """Note what is made before anybody wants it, and how to end it when the engines close; call
        what is given back once it has ended.
        """
        self._ahead.append(drop)

        def leave() -> None:
            with suppress(ValueError):
                self._ahead.remove(drop)

        return leave

    def picture_turns(self) -> Turns:
        """What keeps decoders of pictures to one thread at a time."""
        return self._picture_turns if self.picture_is_apart() else self.turns

    def audio_encoder(self) -> AudioEncoder:
        options = self.source.options(AUDIO_ENCODER)
        return AudioEncoder(self.engine(AUDIO_ENCODER), options["sampling_rate"], options["n_fft"])

    def audio_decoder(self) -> AudioDecoder:
        return AudioDecoder(
            self.engine(AUDIO_DECODER),
            self.engine(VOCODER),
            self.source.model.audio_sampling_rate,
        )

    def upsampler(self, name: str) -> LatentUpsampler:
        """`spatial_upsampler` or `temporal_upsampler`."""
        return LatentUpsampler.from_options(self.engine(name), self.source.options(name))
