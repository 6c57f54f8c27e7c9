"""Video files written while frames arrive, and PNG sequences.

Picture and sound as in spec/media_io.md §2 unless an encoding is named, with three deliberate
differences: the frame rate is kept exactly (the official writer truncates 23.976 to 23, so that
picture and sound drift apart), the sound is fitted to the length of the picture, and a file appears
under its name only when it is complete. NaN in a frame is written as black, in sound as silence;
both warn.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, cast

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ltx2rt.engine import U8, Array
from ltx2rt.errors import MediaError, OptionError, ShapeError
from ltx2rt.media import pyav as av
from ltx2rt.media.audio import AudioTrack, audio_samples, check_rate, check_waveform
from ltx2rt.media.audio import write_audio as write_audio
from ltx2rt.media.color import (
    U16,
    Frames,
    PackedForm,
    check_frames,
    pack_yuv422p10,
    rgb_to_i420,
    to_uint8,
    yuv422p10_planes,
)
from ltx2rt.media.encoding import VideoEncoding, sound_codec, stored_rate
from ltx2rt.media.files import (
    VIDEO_FORMATS,
    OutputFile,
    OutputPipe,
    check_fragmented,
    check_output_path,
    writing,
)
from ltx2rt.media.resample import resample
from ltx2rt.partial import Partial
from ltx2rt.trace import ENCODER, span

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# The moov box leaves with the first fragment (delay_moov), because only then can it carry the
# edit list that hides the AAC priming samples; without it picture and sound would start late.
FRAGMENT_FLAGS = "frag_keyframe+empty_moov+default_base_moof+delay_moov"
BT709 = 1  # value of colour matrix, primaries and transfer in H.273
LIMITED_RANGE = 1
# Tags that every player finds in the usual place of an mp4; other keys need the mdta list.
_COMMON_TAGS = frozenset(
    "title artist album_artist album composer comment genre copyright description synopsis date"
    " encoder lyrics".split()
)


def exact_frame_rate(frame_rate: float | Fraction) -> Fraction:
    """Recover the rational that a decimal frame rate stands for.

    23.976, 29.97, 59.94 and their like become n*1000/1001 (they lie 1e-6 away from it); anything
    else becomes the nearest fraction with a denominator up to 10000 (25 -> 25/1, 12.5 -> 25/2).

    Raises:
        OptionError: not a finite number in (0, 1000].
    """
    if not 0 < frame_rate <= 1000:
        raise OptionError(f"frame_rate={frame_rate} is not a number above 0 and up to 1000.")
    exact = Fraction(frame_rate)
    broadcast = Fraction(round(exact * 1001 / 1000) * 1000, 1001)
    if abs(exact - broadcast) <= broadcast * Fraction(2, 1_000_000):
        return broadcast
    limited = exact.limit_denominator(10_000)
    if not limited:
        raise OptionError(f"frame_rate={frame_rate} is too low; the slowest is 0.0001.")
    return limited


class VideoWriter:
    """Writes picture (BT.709 limited range; H.264 of CRF 19, veryfast, unless an encoding is given)
    and sound (AAC; Opus in .webm, PCM beside ProRes) while frames arrive.

    Use as a context manager. The file takes its name when the block ends without an exception;
    on any exception, KeyboardInterrupt included, nothing is left. A fragmented file grows under
    its own name, so that it can be played meanwhile, and is removed on failure too.
    """

    def __init__(
        self,
        path: str | Path | BinaryIO,
        width: int,
        height: int,
        frame_rate: float | Fraction,
        audio: tuple[Array, int] | None = None,
        *,
        fragmented: bool = False,
        metadata: Mapping[str, str] | None = None,
        fit_audio: bool = True,
        encoding: VideoEncoding | None = None,
        growing_audio: bool = False,
    ) -> None:
        """Check everything that can be checked before work; nothing is written yet.

        Args:
            path: `.mp4`, `.mov`, `.mkv` or `.webm`; an existing file is replaced. Or a binary
                stream (a pipe), which gets a fragmented mp4.
            width, height: pixels, even.
            frame_rate: frames per second, see `exact_frame_rate`.
            audio: `[2, N]` float waveform (or 5.1, 7.1) and its sampling rate (kept, one that AAC
                knows; Opus takes others than its own at 48,000 Hz).
            fragmented: playable while it grows, a fragment per second (mp4 and mov only).
            metadata: tags of the file, e.g. title, comment; any key is allowed.
            fit_audio: cut the sound, or pad it with silence, to the length of the picture,
                round(frames / frame_rate * sampling_rate) samples; else it is kept as it is.
            encoding: codec, quality, preset and encoder.
            growing_audio: `audio` is only the beginning, which may be empty: the rest comes by
                `add_sound`, always before the frames that it goes with.

        Raises:
            MediaError: the path cannot be written.
            UnsupportedError: see `VideoEncoding.check`.
            ShapeError: an odd size, or a waveform that is not stereo.
            OptionError: frame rate, sampling rate or a combination of options is not allowed.
        """
        self._pipe = None if isinstance(path, str | Path) else path
        self.path = Path(path) if isinstance(path, str | Path) else Path("-")
        if self._pipe is None:
            check_output_path(self.path, "video")
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise ShapeError(
                f"video of {width}x{height} pixels cannot be written; width and height must be"
                f" even. Nearest: {max(2, width // 2 * 2)}x{max(2, height // 2 * 2)}."
            )
        target = self.path if self._pipe is None else Path("pipe.mp4")
        suffix = target.suffix.lower()
        self._encoding = encoding or VideoEncoding()
        self._encoding.check(target)
        self._row = self._encoding.row(suffix)
        self._sound_codec = sound_codec(suffix, self._encoding.codec)
        if audio is not None:
            if not growing_audio:
                check_waveform(*audio)
            rate = stored_rate(self._sound_codec, audio[1])
            if rate != audio[1] and not growing_audio:
                audio = resample(np.asarray(audio[0], np.float32), audio[1], rate), rate
            check_rate(audio[1], self._sound_codec)
        fragmented = fragmented or self._pipe is not None
        self._format = VIDEO_FORMATS[suffix]
        if fragmented:
            check_fragmented(self.path)
        self.width, self.height = width, height
        self.frame_rate = exact_frame_rate(frame_rate)
        self.num_frames = 0
        self.nan_values = 0
        self._audio = audio
        self._fit_audio, self._growing_audio = fit_audio, growing_audio
        self._fragmented = fragmented
        self._metadata = dict(metadata or {})

    def __enter__(self) -> Self:
        self._sink: OutputFile | OutputPipe
        if self._pipe is not None:
            self._sink = OutputPipe(self._pipe)
        else:
            self._sink = OutputFile(self.path, in_place=self._fragmented)
        try:
            with self._sink.guard():
                self._open()
        except BaseException:
            self._sink.discard()
            raise
        return self

    def _open(self) -> None:
        flags = FRAGMENT_FLAGS if self._fragmented else "faststart"
        if not self._metadata.keys() <= _COMMON_TAGS:
            flags += "+use_metadata_tags"
        is_matroska = self._format in ("matroska", "webm")  # bitexact: no random identity
        options = {"fflags": "+bitexact"} if is_matroska else {"movflags": flags}
        self._container = av.open(self._sink, "w", format=self._format, options=options)
        self._container.metadata.update(self._metadata)
        stream = self._add_video()
        context = stream.codec_context
        context.width, context.height = self.width, self.height
        context.time_base = 1 / self.frame_rate
        context.thread_type = "FRAME"
        if self._fragmented:  # a fragment starts at a key frame
            context.gop_size = max(1, round(self.frame_rate))
        self._video = stream
        self._track = self._audio and AudioTrack(self._container, self._sound_codec, *self._audio)

    def _add_video(self) -> VideoStream:
        """The picture's stream: codec, pixel format and colour tags."""
        row = self._row
        stream = cast(
            "VideoStream",
            self._container.add_stream(
                row.library, rate=self.frame_rate, options=self._encoding.stream_options(row)
            ),
        )
        context = stream.codec_context
        context.pix_fmt = row.pixels
        if row.tag is not None and self._format in ("mp4", "mov"):
            context.codec_tag = row.tag
        if row.pixels == "bgr0":
            return stream
        context.color_range = LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = BT709
        return stream

    @property
    def packed_form(self) -> PackedForm | None:
        """What frames become before they are encoded."""
        forms: dict[str, PackedForm] = {
            "yuv420p": "i420",
            "bgr0": "rgb_rounded",
            "yuv422p10le": "yuv422p10",
        }
        return forms.get(self._row.pixels)

    def write(self, chunk: Frames) -> None:
        """Append frames and the sound that goes with them.

        Args:
            chunk: `[f, H, W, 3]`, float in [0, 1] (clamped; NaN is black) or uint8; or what
                `write_i420` or `write_yuv422p10` takes.

        Raises:
            ShapeError: not frames of the declared size.
            MediaError: the file cannot be written, e.g. the disk is full.
        """
        if chunk.ndim == 3:
            is_wide = chunk.dtype == np.uint16
            return self.write_yuv422p10(chunk) if is_wide else self.write_i420(chunk)
        check_frames(chunk)
        self._check_size(chunk.shape[2], chunk.shape[1])
        for start in range(len(chunk)):  # one by one: bounds memory, and encoding overlaps
            frame, not_numbers = self._converted(chunk[start])
            self.nan_values += not_numbers
            with self._sink.guard():
                self._append(frame)

    def _converted(self, frame: Array) -> tuple[VideoFrame, int]:
        """A frame as the encoder takes it, and its NaN count."""
        if self._row.pixels == "yuv422p10le":
            wide, not_numbers = pack_yuv422p10(frame[None])
            return frame_of(yuv422p10_planes(wide[0]), "yuv422p10le"), not_numbers
        if self._row.pixels == "bgr0":
            pixels, not_numbers = to_uint8(frame)
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            return made.reformat(format="bgr0"), not_numbers
        packed, not_numbers = rgb_to_i420(frame[None])
        return av.VideoFrame.from_ndarray(packed[0], format="yuv420p"), not_numbers

    def add_sound(self, waveform: Array, of_16_bits: bool | None = None) -> None:
        """More sound for a `growing_audio`: `[2, N]` float at the rate that was given, and see
        `AudioTrack.append`.
        """
        assert self._track
        self._track.append(waveform, of_16_bits)

    def _check_size(self, width: int, height: int) -> None:
        if (width, height) != (self.width, self.height):
            raise ShapeError(
                f"frames of {width}x{height} were given to a video of {self.width}x{self.height}."
            )

    def write_i420(self, chunk: U8) -> None:
        """Append frames that are converted already (see `color.rgb_to_i420`).

        Args:
            chunk: `[f, H * 3 / 2, W]` uint8.

        Raises:
            ShapeError: not planes of the declared size.
            MediaError: the file cannot be written.
        """
        expected = (self.height * 3 // 2, self.width)
        if chunk.dtype != np.uint8 or chunk.ndim != 3 or chunk.shape[1:] != expected:
            raise ShapeError(
                f"I420 frames have shape {list(chunk.shape)} and type {chunk.dtype};"
                f" expected [frames, {expected[0]}, {expected[1]}] uint8."
            )
        with self._sink.guard():
            for packed in chunk:
                self._append(av.VideoFrame.from_ndarray(packed, format="yuv420p"))

    def write_yuv422p10(self, chunk: U16) -> None:
        """Append frames of 10 bits that are converted already (see `color.pack_yuv422p10`).

        Args:
            chunk: `[f, 2 * H, W]` uint16, for a file of such pixels.

        Raises:
            ShapeError: not planes of the declared size, or the file has other pixels.
            MediaError: the file cannot be written.
        """
        expected = (2 * self.height, self.width)
        fits = self._row.pixels == "yuv422p10le"
        if not fits or chunk.dtype != np.uint16 or chunk.ndim != 3 or chunk.shape[1:] != expected:
            raise ShapeError(
                f"4:2:2 frames of 10 bits have shape {list(chunk.shape)} and type {chunk.dtype};"
                f" expected [frames, {expected[0]}, {expected[1]}] uint16, in a file of yuv422p10le"
                f" (this one has {self._row.pixels})."
            )
        with self._sink.guard():
            for packed in chunk:
                self._append(frame_of(yuv422p10_planes(packed), "yuv422p10le"))

    def _append(self, frame: VideoFrame) -> None:
        """Encode the next frame, and the sound up to its end."""
        frame.pts, frame.time_base = self.num_frames, 1 / self.frame_rate
        self.num_frames += 1
        self._encode_video(frame)
        if self._track:
            self._track.write_until(self._audio_end(self._track))

    def _audio_end(self, track: AudioTrack) -> int:
        """Where the sound has to be now: level with the picture, within its own length if kept."""
        rate = self._audio[1] if self._audio else 0
        end = audio_samples(self.num_frames, self.frame_rate, rate)
        kept = self._growing_audio or not self._fit_audio
        return min(end, track.length) if kept else end

    def _encode_video(self, frame: VideoFrame | None) -> None:
        with span(ENCODER, f"frame {self.num_frames}" if frame is not None else "the last frames"):
            for packet in self._video.encode(frame):
                packet.duration = 1  # the muxer cannot guess that of the last frame
                self._container.mux(packet)

    def _finish(self) -> None:
        self._encode_video(None)
        if self._track:
            if not self._fit_audio:
                self._track.write_until(self._track.length)
            elif self._growing_audio:
                rate = self._audio[1] if self._audio else 0
                self._track.write_until(audio_samples(self.num_frames, self.frame_rate, rate))
            self._track.finish()
        self._container.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.nan_values:
                warnings.warn(
                    f"{self.nan_values} colour values of '{self.path}' are NaN; written as black.",
                    stacklevel=2,
                )
            if kind is None:
                if not self.num_frames:
                    raise MediaError(f"cannot write '{self.path}': no frames were given.")
                with self._sink.guard():
                    self._finish()
                self._sink.commit()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Free libav's side and remove the file, unless it was committed."""
        if self._sink.complete:
            return
        try:
            self._container.close()
        except (av.FFmpegError, OSError):
            pass  # the trailer of a file that is thrown away
        finally:
            self._sink.discard()


def frame_of(planes: Sequence[U16], pixels: str) -> VideoFrame:
    """A frame of libav from planes of 16-bit numbers, whose rows it pads."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixels)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    # ProRes takes its tags from the frames
    frame.color_range = LIMITED_RANGE
    frame.colorspace = frame.color_primaries = frame.color_trc = BT709
    return frame


def write_frames(
    directory: str | Path, chunks: Iterable[Frames], metadata: Mapping[str, str] | None = None
) -> int:
    """Write frames as `frame_00000.png`, `frame_00001.png`, ... (8-bit RGB, rounded).

    The directory appears only when all frames are written.

    Args:
        directory: a new or empty directory whose parent exists.
        chunks: `[f, H, W, 3]` each, float in [0, 1] (clamped; NaN is black) or uint8.
        metadata: text chunks of the first frame.

    Returns:
        The number of frames.

    Raises:
        MediaError: the directory cannot be written, is not empty, or there are no frames.
        ShapeError: a chunk is not frames.
    """
    target = Path(directory)
    check_output_path(target, "frames")
    target = Path(os.path.realpath(target))
    count = not_numbers = 0
    tags = PngInfo()
    for name, text in (metadata or {}).items():
        tags.add_itxt(name, text)
    with writing(directory):
        part = Partial(target, folder=True)
    try:
        for chunk in chunks:
            check_frames(chunk)
            pixels, bad = to_uint8(chunk)
            not_numbers += bad
            for frame in pixels:
                with writing(directory):
                    Image.fromarray(frame).save(
                        part.path / f"frame_{count:05d}.png", pnginfo=None if count else tags
                    )
                count += 1
        if not count:
            raise MediaError(f"cannot write frames to '{directory}': no frames were given.")
        with writing(directory):
            part.commit()
    finally:
        part.discard()
    if not_numbers:
        warnings.warn(
            f"{not_numbers} colour values in '{directory}' are NaN; written as black.", stacklevel=2
        )
    return count
