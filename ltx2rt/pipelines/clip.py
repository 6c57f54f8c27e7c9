"""A generated clip: latents that are done, frames and sound that are decoded when asked for."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ltx2rt import __version__
from ltx2rt.components.decoder_tiles import DecoderOptions, auto_tiling
from ltx2rt.components.diffusion_decoder import DIFFUSION_DECODER
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.engine import Array
from ltx2rt.manifest import Lora
from ltx2rt.noise import TorchGenerator
from ltx2rt.pipelines.record import RECORD_TAG, Record, record_of, record_text
from ltx2rt.progress import Job
from ltx2rt.safetensors_writer import write_safetensors
from ltx2rt.tiling import TilingConfig

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline
    from ltx2rt.pipelines.run import Request

Frames = NDArray[np.uint8]


@dataclass(slots=True, kw_only=True, eq=False)
class Clip:
    """One clip.

    Attributes:
        pipeline: owns the decoders; it must stay open until the clip is decoded.
        request: what was asked for, defaults filled in.
        job: progress, cancelling and timings of this clip.
        latents: `stage_1.video`, `stage_1.audio`, ... as they left each stage, float32.
        video_latent, audio_latent: what the decoders get; None: the clip has no picture, no sound.
        generator: the pipeline's, after its last draw: a diffusion decoder takes its noise from a
            copy, so that every decoding gives the same frames.
        frame_rate: frames per second, where it is not that of the request.
        waveform: sound that is finished, `[2, N]` float32 and its rate in Hz, instead of
            `audio_latent`.
        crop: frames, height and width of the finished picture, where the decoded one is larger.
        frame_step: every so many-th decoded frame is kept.
        cut_audio: `audio` ends with the picture, where `audio_latent` lasts longer.
        stages: what every stage did: its sigmas, sampler and LoRAs.
    """

    pipeline: Pipeline
    request: Request
    job: Job
    latents: Mapping[str, Array]
    video_latent: Array | None
    audio_latent: Array | None
    generator: TorchGenerator
    frame_rate: float = 0.0
    waveform: tuple[NDArray[np.float32], int] | None = None
    crop: tuple[int, int, int] | None = None
    frame_step: int = 1
    cut_audio: bool = False
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.frame_rate = self.frame_rate or self.config.frame_rate

    @property
    def config(self) -> GenerationConfig:
        """What was asked for."""
        return self.request.config

    @property
    def guidance(self) -> GuidanceConfig | None:
        """How it was sampled, defaults filled in; None for pipelines without guidance."""
        return self.request.guidance

    @property
    def num_frames(self) -> int:
        """Pixel frames; 0 without a picture."""
        return self._pixels()[0]

    @property
    def height(self) -> int:
        return self._pixels()[1]

    @property
    def width(self) -> int:
        return self._pixels()[2]

    def _pixels(self) -> tuple[int, int, int]:
        if self.video_latent is None:
            return 0, 0, 0
        if self.crop is not None:
            return self.crop
        time, rows, columns = self.pipeline.scale_factors
        frames, height, width = self.video_latent.shape[2:]
        return (frames - 1) * time + 1, height * rows, width * columns

    @property
    def frames(self) -> Iterator[Frames]:
        """Chunks of uint8 `[f, H, W, 3]`, decoded anew by every new iterator, while you iterate."""
        return (to_uint8(chunk) for chunk in self.float_frames())

    def float_frames(self) -> Iterator[NDArray[np.float32]]:
        """Chunks of float32 `[f, H, W, 3]` in [0, 1]; finished frames come while later tiles
        decode. Nothing for a clip without a picture.
        """
        return self.decoded_frames()

    def decoded_frames(self) -> Iterator[NDArray[np.float32]]:
        """As `float_frames`: what the decoder gives, cropped."""
        frames, height, width = self._pixels()
        seen = kept = 0
        for chunk in self._decode():
            chosen = chunk[-seen % self.frame_step :: self.frame_step, :height, :width]
            chosen = chosen[: frames - kept]
            seen, kept = seen + len(chunk), kept + len(chosen)
            if len(chosen):
                yield chosen

    def _decode(self) -> Iterator[NDArray[np.float32]]:
        if self.video_latent is None:
            return
        tiling = TilingConfig.parse(self.tiling)

        def on_tile(done: int, total: int) -> None:
            self.job.report("decode video", done, total)

        self.job.report("decode video", 0, 1)
        decoder = self.pipeline.video_decoder()
        if isinstance(decoder, VideoDecoder):
            yield from decoder.decode(self.video_latent, tiling, on_tile)
        else:
            draw = self.generator.copy().randn
            yield from decoder.decode(self.video_latent, draw, tiling, on_tile)
        self.pipeline.release("video_decoder", *DIFFUSION_DECODER)

    @property
    def tiling(self) -> str:
        """How the decoder splits the clip. Automatic tiles of a diffusion decoder depend on memory
        and decide its noise, so they are named.
        """
        source = self.pipeline.source
        if self.config.tiling != "auto" or self.video_latent is None:
            return self.config.tiling
        if not source.has(*DIFFUSION_DECODER):
            return "auto"
        facts = DecoderOptions.from_options(source.options(DIFFUSION_DECODER[0]))
        return auto_tiling(facts, self.video_latent.shape[2:]).text()

    @property
    def has_audio(self) -> bool:
        return self.audio_latent is not None or self.waveform is not None

    @property
    def audio(self) -> NDArray[np.float32]:
        """Waveform float32 `[2, N]` in [-1, 1] at `audio_sampling_rate`; not cut to the video's
        length; N is 0 for a clip without sound.
        """
        if self.waveform is None:
            if self.audio_latent is None:
                return np.zeros((2, 0), np.float32)
            self.job.report("decode audio", 0, 1)
            waveform, rate = self.pipeline.audio_decoder()(self.audio_latent)
            if self.cut_audio:
                waveform = waveform[:, : round(self.num_frames / self.frame_rate * rate)]
            self.waveform = waveform, rate
            self.pipeline.release("audio_decoder", "vocoder")
            self.job.report("decode audio", 1, 1)
        return self.waveform[0]

    @property
    def audio_sampling_rate(self) -> int:
        """In Hz."""
        if self.waveform is not None:
            return self.waveform[1]
        return self.pipeline.source.model.audio_sampling_rate

    def save(
        self,
        path: str | Path | BinaryIO,
        *,
        fragmented: bool = False,
        frames: str | Path | None = None,
    ) -> None:
        """Write video and sound of equal length; decoding and encoding overlap.

        Args:
            path: `.mp4`, `.mov` or `.mkv`; a sound file (`save_audio`) for a clip without a
                picture; or a binary stream, which gets a fragmented mp4. Nothing is left behind
                when decoding or writing fails.
            fragmented: write a video file that plays while it grows.
            frames: also write the frames into this folder (`save_frames`).

        Raises:
            MediaError: the file cannot be written.
        """
        if self.video_latent is None and isinstance(path, str | Path):
            return self.save_audio(path)
        from ltx2rt.media.writer import VideoWriter, write_frames

        with VideoWriter(
            path,
            self.width,
            self.height,
            self.frame_rate,
            audio=(self.audio, self.audio_sampling_rate) if self.has_audio else None,
            fragmented=fragmented,
            metadata=self.tags(),
        ) as writer:

            def written() -> Iterator[NDArray[np.float32]]:
                for chunk in prefetch(self.float_frames()):
                    writer.write(chunk)
                    yield chunk

            if frames is not None:
                write_frames(frames, written(), self.tags())
            for _ in written() if frames is None else ():
                pass

    def save_frames(self, folder: str | Path) -> None:
        """Write the frames as PNG files into a new or empty folder.

        Raises:
            MediaError: they cannot be written.
        """
        from ltx2rt.media.writer import write_frames

        write_frames(folder, prefetch(self.float_frames()), self.tags())

    def save_audio(self, path: str | Path) -> None:
        """Write the whole sound: `.wav`, `.flac`, `.mp3` or `.m4a`.

        Raises:
            MediaError: the file cannot be written.
        """
        from ltx2rt.media.writer import write_audio

        tags = self.tags()
        if Path(path).suffix.lower() == ".wav":  # it has few tags, none of them free
            tags = {"comment": tags[RECORD_TAG]}
        write_audio(path, self.audio, self.audio_sampling_rate, tags)

    def save_latents(self, path: str | Path) -> None:
        """Write `latents` as safetensors, to decode or compare later."""
        write_safetensors(path, self.latents, {"ltx2rt": __version__, **self.tags()})

    def tags(self) -> dict[str, str]:
        """What a file of this clip says about itself: `metadata`, and the `record` from which the
        same clip is made again.
        """
        return {**self.metadata(), RECORD_TAG: record_text(self.record())}

    def record(self) -> Record:
        """Everything that decides this clip."""
        config = dataclasses.replace(self.config, tiling=self.tiling)
        request = dataclasses.replace(self.request, config=config)
        return record_of(self.pipeline, request, self.stages)

    def metadata(self) -> dict[str, str]:
        """The main facts, for people, as strings."""
        config = self.config
        facts: dict[str, Any] = {
            "prompt": config.prompt,
            "pipeline": self.pipeline.name,
            "seed": config.seed,
            "num_frames": self.num_frames or self.config.frame_count,
            "frame_rate": self.frame_rate,
            "height": self.height,
            "width": self.width,
            "bundle": self.pipeline.source.bundle_id,
            "ltx2rt_version": __version__,
        }
        if self.video_latent is None:
            del facts["height"], facts["width"]
        if config.loras:
            facts["loras"] = lora_text(config.loras)
        if config.stage_2_loras is not None:
            facts["stage_2_loras"] = lora_text(config.stage_2_loras)
        for name in ("sampler", "sigmas", "stage_2_sampler", "stage_2_sigmas", "user_prompt"):
            if (value := getattr(config, name)) is not None:
                facts[name] = value
        if config.generated_keyframes:
            facts["generated_keyframes"] = config.generated_keyframes
        if self.guidance is not None:
            facts |= guidance_facts(self.guidance)
        return {k: str(v) for k, v in facts.items()}


def guidance_facts(guidance: GuidanceConfig) -> dict[str, Any]:
    """Guidance as flat facts; what is unset is left out."""
    facts: dict[str, Any] = {
        "negative_prompt": guidance.negative_prompt,
        "num_inference_steps": guidance.num_inference_steps,
        "scheduler": None if guidance.scheduler == "ltx2" else guidance.scheduler,
        "distilled_strengths": guidance.distilled_strengths,
    }
    if guidance.distilled_lora is not None:
        facts["distilled_lora"] = lora_text([guidance.distilled_lora])
    for modality, params in (("video", guidance.video), ("audio", guidance.audio)):
        if params is not None:
            facts |= {f"{modality}_{k}": v for k, v in dataclasses.asdict(params).items()}
    return {k: v for k, v in facts.items() if v is not None}


def lora_text(loras: Iterable[Lora]) -> str:
    """LoRAs as the command line takes them."""
    return " ".join(f"{lora.path}:{lora.strength:g}" for lora in loras)


def to_uint8(chunk: NDArray[np.float32]) -> Frames:
    """8-bit RGB by truncation, as upstream does (spec/video_vae.md §4)."""
    return (np.clip(chunk, 0, 1) * np.float32(255)).astype(np.uint8)


def prefetch(chunks: Iterator[Array], depth: int = 2) -> Iterator[Array]:
    """Run an iterator on its own thread, at most `depth` items ahead; its exceptions are raised
    here.
    """
    items: queue.Queue[Array | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Array | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for chunk in chunks:
                put(chunk)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=run, name="decode", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
