"""What every pipeline shares: engines loaded when needed, freed when their part is done."""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Self

from ltx2rt.bundle import ModelSource
from ltx2rt.components.audio import AudioDecoder
from ltx2rt.components.prompt_encoder import PromptEncoder
from ltx2rt.components.transformer import Transformer
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Engine
from ltx2rt.errors import BundleError
from ltx2rt.shapes import VideoScaleFactors
from ltx2rt.tokenizer import Tokenizer

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

    def __init__(self, source: ModelSource, runtime: RuntimeConfig | None = None) -> None:
        missing = [c for c in self.requires if not source.has(c)]
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

    def engine(self, name: str) -> Engine:
        """A component's engine, loaded on first use."""
        if name not in self._engines:
            self._engines[name] = self.source.engine(name, self.runtime)
        return self._engines[name]

    def release(self, *names: str) -> None:
        """These parts are done for this clip: free them unless engines stay resident."""
        if self.runtime.residency == "resident":
            return
        if set(names) & set(TRANSFORMER):
            self._transformer = None
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

    def transformer(self) -> Transformer:
        """The diffusion transformer; one object for all stages, so that its tables are cached."""
        if self._transformer is None:
            head, block, tail = (self.engine(name) for name in TRANSFORMER)
            self._transformer = Transformer(
                head,
                block,
                tail,
                self.source.layers("transformer_block"),
                self.source.options("transformer_block"),
            )
        return self._transformer

    def video_encoder(self) -> VideoEncoder:
        return VideoEncoder.from_options(
            self.engine("video_encoder"), self.source.options("video_encoder")
        )

    def video_decoder(self) -> VideoDecoder:
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
