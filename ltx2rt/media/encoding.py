"""How a video file is encoded: one row a codec and encoder, and what a user may choose of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from ltx2rt import env
from ltx2rt.errors import Field, OptionError, Problem, UnsupportedError
from ltx2rt.media import pyav as av
from ltx2rt.media.x264 import x264_options

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

CodecName = Literal["h264", "h265", "av1", "prores", "vp9", "ffv1"]
EncoderName = Literal["software", "nvenc"]
SoundCodec = Literal["aac", "libopus", "pcm_s16le"]

X26_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
NVENC_PRESETS = ("p1", "p2", "p3", "p4", "p5", "p6", "p7")
OPUS_RATE = 48_000
#: file extension -> codecs that it can hold, the default first
FILE_CODECS: dict[str, tuple[CodecName, ...]] = {
    ".mp4": ("h264", "h265", "av1"),
    ".mov": ("h264", "h265", "prores"),
    ".mkv": ("h264", "h265", "av1", "prores", "vp9", "ffv1"),
    ".webm": ("vp9", "av1"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One row: an encoder of libav and how it is asked.

    Attributes:
        library: its name in libav.
        quality: name of the option, best and worst value, default; None: the presets decide.
        presets: name of the option, what each preset of ours means to it, default.
        options: further options.
        pixels: its pixel format: 8-bit 4:2:0, 10-bit 4:2:2, or 8-bit RGB.
        tag: the codec's four letters where players need others than libav's.
    """

    library: str
    quality: tuple[str, int, int, int] | None
    presets: tuple[str, Mapping[str, str], str]
    options: Mapping[str, str] = field(default_factory=dict)
    pixels: Literal["yuv420p", "yuv422p10le", "bgr0"] = "yuv420p"
    tag: str | None = None

    def arguments(self, quality: int | None, preset: str | None) -> dict[str, str]:
        """Options of libav for what was chosen; None takes the default."""
        name, values, usual = self.presets
        found = {**self.options, name: values[preset or usual]}
        if self.quality is not None:
            option, _, _, default = self.quality
            found[option] = str(default if quality is None else quality)
        return found


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _nvenc(library: str, worst: int, default: int, tag: str | None = None) -> Encoder:
    return Encoder(
        library=library,
        quality=("cq", 0, worst, default),
        presets=("preset", _same(*NVENC_PRESETS), "p4"),
        options={"rc": "vbr", "b": "0"},
        tag=tag,
    )


ENCODERS: dict[tuple[CodecName, EncoderName], Encoder] = {
    ("h264", "software"): Encoder(
        library="libx264",
        quality=("crf", 0, 51, 19),
        presets=("preset", _same(*X26_PRESETS), "veryfast"),
        options=x264_options(19),
    ),
    ("h265", "software"): Encoder(
        library="libx265",
        quality=("crf", 0, 51, 22),
        presets=("preset", _same(*X26_PRESETS), "veryfast"),
        # without B-frames: x265 leaves their decoding times undefined in a clip of a few frames,
        # which the mp4 muxer then refuses now and then
        options={"x265-params": "log-level=error:bframes=0"},
        tag="hvc1",
    ),
    ("av1", "software"): Encoder(
        library="libsvtav1",
        quality=("crf", 1, 63, 30),
        presets=("preset", _same(*(str(n) for n in range(1, 10))), "8"),
    ),
    ("prores", "software"): Encoder(
        library="prores_ks",
        quality=None,
        presets=("profile", {"proxy": "0", "lt": "1", "standard": "2", "hq": "3"}, "hq"),
        options={"vendor": "apl0"},
        pixels="yuv422p10le",
    ),
    ("vp9", "software"): Encoder(
        library="libvpx-vp9",
        quality=("crf", 0, 63, 31),
        presets=("cpu-used", _same(*(str(n) for n in range(9))), "4"),
        options={"b": "0", "deadline": "good", "row-mt": "1"},
    ),
    ("ffv1", "software"): Encoder(
        library="ffv1",
        quality=None,
        presets=("slices", {"small": "4", "fast": "16"}, "fast"),
        options={"level": "3", "slicecrc": "1"},
        pixels="bgr0",
    ),
    ("h264", "nvenc"): _nvenc("h264_nvenc", 51, 21),
    ("h265", "nvenc"): _nvenc("hevc_nvenc", 51, 24, "hvc1"),
    ("av1", "nvenc"): _nvenc("av1_nvenc", 63, 30),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoEncoding:
    """How a clip is encoded; what is None is as the file's kind has it.

    ```python
    clip.save("small.webm", encoding=ltx2rt.VideoEncoding(codec="av1", quality=45))
    ```

    Attributes:
        codec: `h264` (.mp4, .mov, .mkv), `h265` (also), `av1` (.mp4, .mkv, .webm), `prores` (.mov,
            .mkv), `vp9` (.webm, .mkv) or `ffv1` (.mkv: without loss, every frame as its 8 bits of
            RGB).
        quality: the codec's own number: CRF of the first three and of vp9, where lower is better;
            0 to 100 of an animated .webp, where higher is.
        preset: the codec's own name for how much time it takes; of prores its profile.
        encoder: `nvenc` encodes on an NVIDIA GPU: other bytes, and not the same every time.
    """

    codec: CodecName | None = None
    quality: int | None = None
    preset: str | None = None
    encoder: EncoderName = "software"

    def row(self, suffix: str) -> Encoder:
        """The encoder for a file of this extension, checked as far as one can without opening it.

        Raises:
            OptionError: the file cannot hold the codec, or quality or preset are not its own; all
                problems are named.
        """
        codecs = FILE_CODECS[suffix]
        codec = self.codec or codecs[0]
        problems: list[str] = []
        if codec not in codecs:
            where = [s for s, held in FILE_CODECS.items() if codec in held]
            holds = f"{codec} goes into {', '.join(where)}" if where else f"there is no {codec}"
            problems.append(
                Problem(
                    Field("codec"),
                    f"={codec} does not go into a {suffix} file, which holds {', '.join(codecs)}; "
                    f"{holds}",
                )
            )
        row = ENCODERS.get((codec, self.encoder))
        if row is None:
            able = [c for c, e in ENCODERS if e == self.encoder]
            problems.append(
                Problem(
                    Field("encoder"),
                    f"={self.encoder} does not encode {codec}; it encodes {', '.join(able)}",
                )
            )
        else:
            problems += self._problems(codec, row)
        if problems or row is None:
            raise OptionError("a video cannot be encoded", problems)
        return row

    def _problems(self, codec: str, row: Encoder) -> list[str]:
        """Quality and preset that are not those of an encoder."""
        problems: list[str] = []
        asked = self.quality
        if asked is not None and row.quality is None:
            problems.append(
                Problem(f"{codec} takes its quality from ", Field("preset"), f"; leave {asked} out")
            )
        elif asked is not None and row.quality is not None:
            _, best, worst, default = row.quality
            if not best <= asked <= worst:
                problems.append(
                    Problem(
                        Field("quality"),
                        f"={asked} of {codec} is not in [{best}, {worst}]; lower is better, "
                        f"default {default}",
                    )
                )
        names = row.presets[1]
        if self.preset is not None and self.preset not in names:
            problems.append(
                Problem(Field("preset"), f"={self.preset} of {codec}; allowed: {', '.join(names)}")
            )
        return problems

    def check(self, path: Path) -> None:
        """Find out before any work whether a video file can be encoded like this here.

        Raises:
            OptionError: see `row`.
            UnsupportedError: libav lacks the encoder, or it does not start on this machine.
        """
        row = self.row(path.suffix.lower())
        if row.library not in av.codecs_available:
            raise UnsupportedError(
                f"this build of PyAV holds no {row.library}; install its wheel (pip install "
                "--force-reinstall --only-binary av av), or choose another codec."
            )
        if self.encoder == "software":
            return
        context = cast("VideoCodecContext", av.CodecContext.create(row.library, "w"))
        context.width, context.height, context.pix_fmt = 256, 256, row.pixels
        context.time_base = Fraction(1, 24)
        try:
            context.open()
        except (av.FFmpegError, OSError) as error:
            raise UnsupportedError(
                Problem(
                    f"{row.library} does not start on this machine ({error}); it needs an NVIDIA "
                    "GPU with a driver of its own age: leave ",
                    Field("encoder"),
                    " out to encode on the CPU.",
                )
            ) from error

    def stream_options(self, row: Encoder) -> dict[str, str]:
        """Options of libav for the stream."""
        if row.library == "libsvtav1":
            env.quieten_svt()
        return row.arguments(self.quality, self.preset)


def sound_codec(suffix: str, codec: CodecName | None) -> SoundCodec:
    """The sound that goes beside a picture: AAC, Opus in .webm, PCM beside ProRes and FFV1."""
    if suffix == ".webm":
        return "libopus"
    return "pcm_s16le" if codec in ("prores", "ffv1") else "aac"


def stored_rate(codec: SoundCodec, sampling_rate: int) -> int:
    """The sampling rate at which a codec holds sound: its own, but Opus knows few."""
    if codec != "libopus" or sampling_rate in (av.Codec(codec, "w").audio_rates or ()):
        return sampling_rate
    return OPUS_RATE
