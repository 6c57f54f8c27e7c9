"""The engines of a pipeline: loaded when needed, freed when their part is done, each behind the
class that gives it its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

from ltx2rt.bundle.bundle import ModelSource
from ltx2rt.components.audio import AudioDecoder, AudioEncoder
from ltx2rt.components.diffusion_decoder import DiffusionVideoDecoder
from ltx2rt.components.duration_head import DurationHead
from ltx2rt.components.text_encoder import PromptEncoder, TextContext, TextEncoder
from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.components.transformer import Transformer
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Engine
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.lora.files import Lora
from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DIFFUSION_DECODER,
    DIFFUSION_FEATURES,
    DURATION_HEAD,
    TEXT_HEAD,
    TEXT_TAIL,
    TRANSFORMER,
    TRANSFORMER_BLOCK,
    TRANSFORMER_BLOCK_PLAIN,
    TRANSFORMER_HEAD,
    TRANSFORMER_TAIL,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VOCODER,
)


class Engines:
    """Owns the engines of one pipeline.

    Args:
        source: an opened bundle.
        runtime: how to run.
    """

    def __init__(self, source: ModelSource, runtime: RuntimeConfig | None = None) -> None:
        self.source = source
        self.runtime = runtime or RuntimeConfig()
        self._engines: dict[str, Engine] = {}
        self._transformer: Transformer | None = None
        self._loras: tuple[Lora, ...] = ()
        #: the last prompts, the LoRAs that changed connectors or projections, and the contexts:
        #: encoded once for several clips
        self.contexts: tuple[tuple[str, ...], tuple[Lora, ...], TextContext] | None = None
        self._text_loras: tuple[Lora, ...] = ()

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
            names = (*names, TRANSFORMER_BLOCK_PLAIN)
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

    def prompt_encoder(self, loras: Sequence[Lora] = ()) -> PromptEncoder:
        """Tokenizer and text encoder, with LoRAs merged into connectors and projections. Unless
        engines stay resident, a layer's weights are let go as soon as it has run.
        """
        if self._text_loras != tuple(loras):
            self._close(TEXT_TAIL)
            self._text_loras = tuple(loras)
        source, keep = self.source, self.runtime.residency == "resident"
        names = dict.fromkeys(block for block, _ in source.options(TEXT_HEAD)["layers"])
        encoder = TextEncoder(
            self.engine(TEXT_HEAD),
            {name: (self.engine(name), source.layers(name, keep=keep)) for name in names},
            self.engine(TEXT_TAIL, loras),
            source.layers(TEXT_HEAD, keep=keep),
            source.options(TEXT_HEAD),
        )
        return PromptEncoder(Tokenizer.from_file(source.tokenizer_path()), encoder)

    def duration_head(self) -> DurationHead:
        return DurationHead(self.engine(DURATION_HEAD))

    def transformer(self, loras: Sequence[Lora] = ()) -> Transformer:
        """The diffusion transformer with LoRAs merged; one object for all stages that want the
        same ones, so that its tables are cached. Only one set of merged weights is held.
        """
        active = tuple(lora for lora in loras if lora.strength)
        if self._transformer is None or self._loras != active:
            self._transformer = None
            self._close(TRANSFORMER_HEAD, TRANSFORMER_TAIL)  # the block engine has no weights
            head, block, tail = (self.engine(name, active) for name in TRANSFORMER)
            plain = None
            if self.source.has(TRANSFORMER_BLOCK_PLAIN):
                plain = (
                    self.engine(TRANSFORMER_BLOCK_PLAIN),
                    self.source.layers(TRANSFORMER_BLOCK_PLAIN, active),
                )
            self._loras = active
            self._transformer = Transformer(
                head,
                block,
                tail,
                self.source.layers(TRANSFORMER_BLOCK, active),
                self.source.options(TRANSFORMER_BLOCK),
                plain,
            )
        return self._transformer

    def video_encoder(self) -> VideoEncoder:
        return VideoEncoder.from_options(
            self.engine(VIDEO_ENCODER), self.source.options(VIDEO_ENCODER)
        )

    def video_decoder(self) -> VideoDecoder | DiffusionVideoDecoder:
        """The decoder that the bundle holds."""
        if self.source.has(*DIFFUSION_DECODER):
            features, context, pixels = (self.engine(name) for name in DIFFUSION_DECODER)
            options = self.source.options(DIFFUSION_FEATURES)
            return DiffusionVideoDecoder(features, context, pixels, options)
        return VideoDecoder.from_options(
            self.engine(VIDEO_DECODER), self.source.options(VIDEO_DECODER)
        )

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
