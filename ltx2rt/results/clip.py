"""A generated clip: latents that are done, frames and sound that are decoded when asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ltx2rt import __version__
from ltx2rt.config import GenerationConfig, GuidanceConfig, RecordPaths
from ltx2rt.engine import U8, Array
from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.media.color import PackedForm, cropped
from ltx2rt.media.encoding import VideoEncoding
from ltx2rt.media.hdr import HdrFormat
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.results.facts import as_utf8, guidance_facts, lora_text
from ltx2rt.results.prefetch import prefetch
from ltx2rt.results.record import RECORD_TAG, Record, path_teller, record_text

Frames = U8


@dataclass(slots=True, kw_only=True, eq=False)
class Clip:
    """One clip.

    Attributes:
        record: what it was made from.
        job: progress, cancelling and timings of this clip.
        latents: `stage_1.video`, `stage_1.audio`, ... as they left each stage, float32 in this
            machine's memory, which `torch.from_dlpack` and the like share without a copy.
        video_latent, audio_latent: what the decoders get; None: the clip has no picture, no sound.
        decode_video: job, latent, tiling (as `GenerationConfig.tiling`) and the form that will do,
            or None, to chunks of float32 `[f, H, W, 3]` in [0, 1], or of that form; its pipeline
            must stay open until the clip is decoded.
        decode_audio: job and latent to a waveform `[2, N]` and its rate in Hz.
        scale_factors: pixels per latent cell.
        sampling_rate: of decoded sound, in Hz.
        frame_rate: frames per second.
        waveform: sound that is finished, `[2, N]` float32 and its rate in Hz, instead of
            `audio_latent`; `[6, N]` or `[8, N]` where 5.1 or 7.1 is kept.
        crop: frames, height and width of the finished picture, where the decoded one is larger.
        frame_step: every so many-th decoded frame is kept.
        cut_audio: `audio` ends with the picture, where `audio_latent` lasts longer.
        generators: states of the random generator, after each stage and before `decode`.
        hdr: what the codes of a clip of high dynamic range mean.
        record_paths: how its files write the paths of what it was made from; None: they say nothing
            about how it was made.
        sound_is_apart: whether sound may be decoded beside the picture, from another thread.
        saved: called with the job when `save` has written a video, where somebody wants to know.
    """

    record: Record
    job: Job
    latents: Mapping[str, Array]
    video_latent: Array | None
    audio_latent: Array | None
    decode_video: Callable[[Job, Array, str, PackedForm | None], Iterator[Array]]
    decode_audio: Callable[[Job, Array], tuple[NDArray[np.float32], int]]
    scale_factors: VideoScaleFactors
    sampling_rate: int
    frame_rate: float
    waveform: tuple[NDArray[np.float32], int] | None = None
    crop: tuple[int, int, int] | None = None
    frame_step: int = 1
    cut_audio: bool = False
    generators: Mapping[str, Array] = field(default_factory=dict)
    hdr: HdrFormat | None = None
    record_paths: RecordPaths | None = "relative"
    sound_is_apart: Callable[[], bool] = lambda: False
    saved: Callable[[Job], None] | None = None

    @property
    def request(self) -> Request:
        """What was asked for, defaults filled in."""
        return self.record.request

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
        time, rows, columns = self.scale_factors
        frames, height, width = self.video_latent.shape[2:]
        return (frames - 1) * time + 1, height * rows, width * columns

    @property
    def rendered_size(self) -> tuple[int, int]:
        """Height and width of the decoded picture, out of which this one is cut; 0 without one."""
        if self.video_latent is None:
            return 0, 0
        height, width = self.video_latent.shape[3:]
        return height * self.scale_factors.height, width * self.scale_factors.width

    @property
    def frames(self) -> Iterator[Frames]:
        """Chunks of uint8 `[f, H, W, 3]`, decoded anew by every new iterator, while you iterate.

        ```python
        for chunk in clip.frames:
            print(chunk.shape, chunk.mean())
        ```
        """
        return (truncated_uint8(chunk) for chunk in self.frames_as("rgb"))

    def float_frames(self) -> Iterator[NDArray[np.float32]]:
        """Chunks of float32 `[f, H, W, 3]` in [0, 1]; finished frames come while later tiles
        decode. Nothing for a clip without a picture.
        """
        return self.decoded_frames()

    def frames_as(self, form: PackedForm | None) -> Iterator[Array]:
        """As `float_frames`, but chunks are in that form where the decoder's device makes them;
        not what a clip of high dynamic range holds.
        """
        return self.float_frames() if form is None or self.hdr else self.decoded_frames(form)

    def decoded_frames(self, form: PackedForm | None = None) -> Iterator[Array]:
        """As `frames_as`: what the decoder gives, cropped."""
        if self.video_latent is None:
            return
        frames, height, width = self._pixels()
        seen = kept = 0
        for chunk in self.decode_video(self.job, self.video_latent, self.config.tiling, form):
            chosen = chunk[-seen % self.frame_step :: self.frame_step][: frames - kept]
            seen, kept = seen + len(chunk), kept + len(chosen)
            if len(chosen):
                yield cropped(chosen, height, width)

    def async_frames(self) -> AsyncIterator[Frames]:
        """As `frames`, for programs of asyncio: decoded on a thread of its own, while the loop goes
        on.

        ```python
        clip = await asyncio.to_thread(pipe, prompt="Rain on a tin roof.")
        async for chunk in clip.async_frames():
            await send(chunk.tobytes())
        ```

        Leaving the loop early ends the decoding after the chunk that it is at; to let go of it
        there and then, close the iterator (`contextlib.aclosing`).
        """
        from ltx2rt.results.async_frames import iterate

        return iterate(lambda: iter(self.frames))

    @property
    def has_audio(self) -> bool:
        return self.audio_latent is not None or self.waveform is not None

    @property
    def audio(self) -> NDArray[np.float32]:
        """Waveform float32 `[2, N]` in [-1, 1] at `audio_sampling_rate`, with more channels where
        kept sound has them; not cut to the video's length; N is 0 for a clip without sound.
        """
        if self.waveform is None:
            if self.audio_latent is None:
                return np.zeros((2, 0), np.float32)
            waveform, rate = self.decode_audio(self.job, self.audio_latent)
            if self.cut_audio:
                waveform = waveform[:, : round(self.num_frames / self.frame_rate * rate)]
            self.waveform = waveform, rate
        return self.waveform[0]

    @property
    def audio_sampling_rate(self) -> int:
        """In Hz."""
        if self.waveform is not None:
            return self.waveform[1]
        return self.sampling_rate

    def save(
        self,
        path: str | Path | BinaryIO,
        *,
        fragmented: bool = False,
        frames: str | Path | None = None,
        folder: Path | None = None,
        encoding: VideoEncoding | None = None,
        joined: bool = False,
    ) -> None:
        """Write video and sound of equal length; decoding and encoding overlap.

        ```python
        clip.save("out.mp4")
        clip.save("out.mkv", encoding=ltx2rt.VideoEncoding(codec="h265", quality=20))
        ```

        Args:
            path: `.mp4`, `.mov`, `.mkv` or `.webm`; `.gif` or `.webp` without its sound; `.png` for
                a clip of one frame; a sound file (`save_audio`) for a clip without a picture; or a
                binary stream, which gets a fragmented mp4. Nothing is left behind when decoding or
                writing fails.
            fragmented: write a video file that plays while it grows.
            frames: also write the frames into this folder (`save_frames`).
            folder: where the file behind a stream lies, which its record names paths relative to;
                default: the current one.
            encoding: codec, quality, preset and encoder of the picture.
            joined: with the clips before and after it (`GenerationConfig.after`, `before`) as one,
                cross-faded over the frames that they share.

        Raises:
            MediaError: the file cannot be written.
            OptionError, UnsupportedError: see `VideoEncoding`; or there is nothing to join with.
        """
        if joined:
            beside = Path(path).parent if isinstance(path, str | Path) else folder or Path()
            return self._save_joined(path, beside, fragmented=fragmented, encoding=encoding)
        if self.video_latent is None and isinstance(path, str | Path):
            return self.save_audio(path)
        from ltx2rt.media.files import ANIMATION_FORMATS
        from ltx2rt.media.writer import VideoWriter, write_frames

        beside = Path(path).parent if isinstance(path, str | Path) else folder or Path()
        suffix = Path(path).suffix.lower() if isinstance(path, str | Path) else ""
        if isinstance(path, str | Path) and (suffix == ".png" or suffix in ANIMATION_FORMATS):
            return self._save_picture(Path(path), frames, encoding)

        def writer_of(audio: tuple[Array, int] | None) -> VideoWriter:
            return VideoWriter(
                path,
                self.width,
                self.height,
                self.frame_rate,
                audio=audio,
                fragmented=fragmented,
                metadata=self.tags(beside),
                encoding=encoding,
            )

        # refuses what cannot be written before anything is decoded
        form = writer_of(None).packed_form if frames is None else None  # PNG files want other bytes
        with self.with_sound(self.frames_as(form)) as decoded:
            sound = (self.audio, self.audio_sampling_rate) if self.has_audio else None
            with writer_of(sound) as writer:

                def written() -> Generator[Array]:
                    for chunk in decoded:
                        writer.write(chunk)
                        yield chunk

                if frames is not None:
                    write_frames(frames, written(), self.tags(Path(frames)))
                for _ in written():
                    pass
        if self.saved is not None:
            self.saved(self.job)

    def with_sound(self, frames: Iterator[Array]) -> AbstractContextManager[Iterator[Array]]:
        """Frames of this clip as chunks, and `audio` decoded: see `decoded_beside`."""
        from ltx2rt.results.beside import decoded_beside

        sound = (lambda: self.audio) if self.has_audio else None
        return decoded_beside(frames, sound, is_apart=self.sound_is_apart())

    def _save_joined(
        self,
        path: str | Path | BinaryIO,
        beside: Path,
        *,
        fragmented: bool,
        encoding: VideoEncoding | None,
    ) -> None:
        """Write the clip between its neighbours."""
        from ltx2rt.results.joined import Stretch, file_stretch, write_joined

        before, after = self.config.after, self.config.before
        if before is None and after is None:
            raise OptionError("the clip has no clip before or after it to be joined with.")
        head = before.shared(is_end=False) if before else 0
        foot = after.shared(is_end=True) if after else 0
        size, rate = (self.height, self.width), self.frame_rate
        chunks = prefetch(self.float_frames())
        own = Stretch(
            frames=chunks,
            num_frames=self.num_frames,
            sound=(lambda: [self.audio], self.audio_sampling_rate) if self.has_audio else None,
            shared_before=head,
            shared_after=foot,
        )
        first = [file_stretch(before.path, size, rate, shared_after=head)] if before else []
        last = [file_stretch(after.path, size, rate, shared_before=foot)] if after else []
        with closing(chunks):
            write_joined(
                path,
                [*first, own, *last],
                *size,
                rate,
                self.audio_sampling_rate if self.has_audio else None,
                encoding=encoding,
                fragmented=fragmented,
                metadata=self.tags(beside),
            )

    def _save_picture(
        self, path: Path, frames: str | Path | None, encoding: VideoEncoding | None
    ) -> None:
        """Write an animation or a still, decoded once more for `frames`."""
        from ltx2rt.media.animation import write_animation
        from ltx2rt.media.still_writer import write_image
        from ltx2rt.media.writer import exact_frame_rate

        if path.suffix.lower() == ".png":
            if self.num_frames != 1:
                raise OptionError(
                    f"a .png file holds one frame, the clip has {self.num_frames}; make one "
                    "(num_frames=1), write a .webp or a video file, or a PNG file for each "
                    "(save_frames)."
                )
            write_image(path, next(self.frames_as("rgb_rounded"))[0], self.tags(path.parent))
        else:
            rate = exact_frame_rate(self.frame_rate)
            quality = encoding.quality if encoding else None
            text = self.tags(path.parent).get(RECORD_TAG, "")
            with closing(prefetch(self.frames_as("rgb_rounded"))) as chunks:
                write_animation(path, chunks, self.num_frames, rate, text, quality)
        if frames is not None:
            self.save_frames(frames)

    def save_frames(self, folder: str | Path) -> None:
        """Write the frames as PNG files into a new or empty folder.

        Raises:
            MediaError: they cannot be written.
        """
        from ltx2rt.media.writer import write_frames

        with closing(prefetch(self.frames_as("rgb_rounded"))) as chunks:
            write_frames(folder, chunks, self.tags(Path(folder)))

    def save_audio(self, path: str | Path) -> None:
        """Write the whole sound: `.wav`, `.flac`, `.mp3` or `.m4a`.

        Raises:
            MediaError: the file cannot be written.
        """
        from ltx2rt.media.writer import write_audio

        tags = self.tags(Path(path).parent)
        if tags and Path(path).suffix.lower() == ".wav":  # it has few tags, none of them free
            tags = {"comment": tags[RECORD_TAG]}
        write_audio(path, self.audio, self.audio_sampling_rate, tags)

    def save_latents(self, path: str | Path) -> None:
        """Write `latents` as safetensors, to decode (`open_latents`), go on from
        (`GenerationConfig.latents`) or compare later.
        """
        from ltx2rt.results.latent_file import Finish, write_latents

        given = self.waveform if self.audio_latent is None else None
        finish = Finish(
            sound_rate=given[1] if given else 0,
            frame_rate=self.frame_rate,
            crop=self.crop,
            frame_step=self.frame_step,
            cut_audio=self.cut_audio,
            hdr=self.hdr,
        )
        write_latents(
            path,
            self.latents,
            {"video": self.video_latent, "audio": self.audio_latent},
            given[0] if given else None,
            finish,
            self.generators,
            self.tags(Path(path).parent),
        )

    def tags(self, folder: Path) -> dict[str, str]:
        """What a file of this clip in `folder` says about itself: `metadata`, and the `record` from
        which the same clip is made again.
        """
        if self.record_paths is None:
            return {}
        told = path_teller(self.record_paths, folder)
        facts = {name: as_utf8(text) for name, text in self.metadata(told).items()}
        return {**facts, RECORD_TAG: record_text(self.record, told)}

    def metadata(self, told: Callable[[Path], str] | None = None) -> dict[str, str]:
        """The main facts, for people, as strings.

        Args:
            told: how paths are written; default: as they were given.
        """
        config = self.config
        facts: dict[str, Any] = {
            "prompt": config.prompt,
            "pipeline": self.record.pipeline,
            "seed": config.seed,
            "num_frames": self.num_frames or config.frame_count,
            "frame_rate": self.frame_rate,
            "height": self.height,
            "width": self.width,
            "bundle": self.record.bundle,
            "ltx2rt_version": __version__,
        }
        if cut := self.record.stages.get("prompt", {}).get("cut"):
            facts["prompt_cut"] = "; ".join(
                f"{c['tokens']} tokens, {c['kept']} kept, lost: {c['lost']}" for c in cut
            )
        if self.video_latent is None:
            del facts["height"], facts["width"]
        if config.loras:
            facts["loras"] = lora_text(config.loras, told)
        if config.stage_2_loras is not None:
            facts["stage_2_loras"] = lora_text(config.stage_2_loras, told)
        for name in ("sampler", "sigmas", "stage_2_sampler", "stage_2_sigmas", "user_prompt"):
            if (value := getattr(config, name)) is not None:
                facts[name] = value
        if config.generated_keyframes:
            facts["generated_keyframes"] = config.generated_keyframes
        if self.guidance is not None:
            facts |= guidance_facts(self.guidance, told)
        return {k: str(v) for k, v in facts.items()}


def truncated_uint8(chunk: Array) -> Frames:
    """8-bit RGB by truncation, as upstream does (spec/video_vae.md §4); uint8 stays as it is."""
    if chunk.dtype == np.uint8:
        return chunk
    return (np.clip(chunk, 0, 1) * np.float32(255)).astype(np.uint8)
