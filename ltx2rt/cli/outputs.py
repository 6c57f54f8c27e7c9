"""What `ltx2rt generate` and `ltx2rt batch` write: checked before any work, then written."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ltx2rt.errors import OptionError
from ltx2rt.media.encoding import CodecName, EncoderName, VideoEncoding
from ltx2rt.plain_data import named_files

if TYPE_CHECKING:
    from ltx2rt.media.files import OutputKind
    from ltx2rt.pipelines.base import Pipeline
    from ltx2rt.pipelines.request import Request
    from ltx2rt.results.clip import Clip

STDOUT = Path("-")


def real_path(path: Path) -> Path:
    """Where a path leads, links followed as far as they go."""
    return Path(os.path.realpath(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where the parts of one clip go; None: not written.

    Attributes:
        clip: .mp4, .mov, .mkv or .webm; .gif or .webp: an animation without sound; .wav, .flac,
            .mp3 or .m4a: only the sound; .png for one frame; -: an mp4 on stdout.
        stream: write an .mp4 or .mov that plays while the clip is decoded.
        frames: also (or only) write the frames as PNG files.
        audio: also write the whole sound: .wav, .flac, .mp3 or .m4a.
        latents: write every stage's latents (safetensors).
        codec: h264, h265, av1, prores, vp9 or ffv1 (lossless); default: the first that the file's
            extension holds (.webm: vp9, others: h264).
        quality: the codec's own number: CRF, where lower is better; of .webp 0 to 100.
        preset: the codec's own name for how long it takes, such as slow, 6 or p7; of prores its
            profile.
        encoder: nvenc encodes on an NVIDIA GPU.
        joined: write the clips of --after and --before along with this one, cross-faded.
    """

    clip: Path | None = None
    stream: bool = False
    frames: Path | None = None
    audio: Path | None = None
    latents: Path | None = None
    codec: CodecName | None = None
    quality: int | None = None
    preset: str | None = None
    encoder: EncoderName = "software"
    joined: bool = False

    @property
    def encoding(self) -> VideoEncoding | None:
        """How the clip is encoded; None: as its kind of file always is."""
        chosen = VideoEncoding(
            codec=self.codec, quality=self.quality, preset=self.preset, encoder=self.encoder
        )
        return None if chosen == VideoEncoding() else chosen

    @property
    def paths(self) -> list[Path]:
        """All files and folders, the clip first."""
        return [p for p in (self.clip, self.frames, self.audio, self.latents) if p is not None]

    @property
    def is_stdout(self) -> bool:
        return self.clip == STDOUT

    @property
    def is_sound(self) -> bool:
        """Whether the first of the files holds sound alone."""
        from ltx2rt.media.files import AUDIO_FORMATS

        return self.paths[0].suffix.lower() in AUDIO_FORMATS

    def numbered(self, number: int) -> Outputs:
        """The outputs of one of several clips: `out-0001.mp4`, ...

        Raises:
            OptionError: several clips cannot go to standard output.
        """
        if self.is_stdout:
            raise OptionError(
                "-o - takes one clip; name a file for several (--num-videos, --seed)."
            )

        def name(path: Path | None) -> Path | None:
            return path and path.with_name(f"{path.stem}-{number:04d}{path.suffix}")

        return replace(
            self,
            clip=name(self.clip),
            frames=name(self.frames),
            audio=name(self.audio),
            latents=name(self.latents),
        )

    def check(self, pipeline: type[Pipeline], request: Request, *, resume: bool = False) -> None:
        """Find out, before any work, that everything can be written, and that a clip of this
        request has it.

        Args:
            pipeline, request: what is made.
            resume: folders of frames may be there, from a run that made them.

        Raises:
            MediaError, OptionError, UnsupportedError: nothing is named, or see `check_output_path`
                and `VideoEncoding.check`.
        """
        from ltx2rt.media.animation import check_animation
        from ltx2rt.media.exr import exr_folder
        from ltx2rt.media.files import check_file_path, check_fragmented, check_output_path

        if not self.paths:
            raise OptionError(
                "nothing is to be written: name an output (-o out.mp4, --frames DIR, "
                "--audio-output FILE or --save-latents FILE)."
            )
        makes = pipeline.output_kinds(request.inputs)
        if not request.config.with_audio:
            makes = tuple(kind for kind in makes if kind != "audio")
        kind = makes[0]
        kinds: list[OutputKind] = [*makes]
        if "video" in makes and request.config.hdr is None and not pipeline.makes_exr:
            kinds.append("animation")
            if request.config.num_frames == 1:
                kinds.append("image")
        if self.clip is not None and not self.is_stdout:
            if "animation" in kinds and "image" not in kinds:
                self._refuse_still(pipeline, request)
            kind = check_output_path(self.clip, *kinds)
        is_hdr = kind == "video" and (request.config.hdr is not None or pipeline.makes_exr)
        problems = self._overwritten(request)
        if kind != "video" and self.stream:
            problems.append(f"--stream is for video, not for '{self.clip}'")
        if kind != "video" and self.is_stdout:
            problems.append(f"-o - takes video; this request makes {kind}")
        if "video" not in makes and self.frames is not None:
            problems.append(f"--frames is for video; this request makes {kind}")
        if "audio" not in makes and self.audio is not None:
            problems.append("--audio-output is for clips with sound; this one has none")
        if is_hdr and (self.stream or self.frames is not None or self.is_stdout):
            problems.append(
                "a clip of high dynamic range goes to an ordinary file with EXR frames beside it; "
                "leave --stream, --frames and -o - out"
            )
        if self.is_stdout and getattr(sys.stdout, "was_closed", False):
            problems.append("standard output is closed")
        if self.stream and self.clip is None:
            problems.append("--stream is for a video file; name one with -o")
        if self.encoding is not None and (kind not in ("video", "animation") or is_hdr):
            problems.append(
                "--codec, --quality, --preset and --encoder are for video files of ordinary range"
            )
        elif kind == "animation" and (self.codec or self.preset or self.encoder != "software"):
            problems.append(f"'{self.clip}' has no codec, preset or encoder to choose")
        if self.joined:
            problems += self._joined_problems(request, kind, is_hdr=is_hdr)
        if problems:
            raise OptionError("cannot write", problems)
        if kind == "animation" and self.clip is not None:
            check_animation(self.clip, request.config.frame_rate, self.quality)
        elif self.encoding is not None:
            self.encoding.check(Path("pipe.mp4") if self.is_stdout else self.clip or Path("x.mp4"))
        if self.stream and self.clip is not None:
            check_fragmented(self.clip)
        if is_hdr and self.clip is not None:
            check_output_path(exr_folder(self.clip), "frames", may_exist=resume)
        if self.frames is not None:
            check_output_path(self.frames, "frames", may_exist=resume)
        if self.audio is not None:
            check_output_path(self.audio, "audio")
        if self.latents is not None:
            check_file_path(self.latents)

    def _refuse_still(self, pipeline: type[Pipeline], request: Request) -> None:
        """Say what there is instead of a PNG file of several frames."""
        if self.clip is None or self.clip.suffix.lower() != ".png":
            return
        count = request.config.num_frames
        made = count if isinstance(count, int) else "as many as the model chooses"
        one = "ask for one (--num-frames 1), or " if pipeline.takes("config.num_frames") else ""
        raise OptionError(
            f"'{self.clip}' can hold one frame, this request makes {made}; {one}name a folder for "
            "a PNG file of each (--frames DIR)."
        )

    def _joined_problems(self, request: Request, kind: str, *, is_hdr: bool) -> list[str]:
        """What a clip that is joined with its neighbours cannot be."""
        problems: list[str] = []
        if request.config.after is None and request.config.before is None:
            problems.append("--joined needs a clip of --after or --before")
        if kind != "video" or is_hdr or self.clip is None:
            problems.append("--joined is for a video file of ordinary range (-o out.mp4)")
        if self.frames is not None or self.audio is not None:
            problems.append("--joined writes one video: leave --frames and --audio-output out")
        return problems

    def _overwritten(self, request: Request) -> list[str]:
        """What would be lost: an output under the name of another, or of what the clip is made
        from.
        """
        count = Counter(real_path(path) for path in self.paths)
        problems = [f"'{p}' is named for {n} outputs" for p, n in count.items() if n > 1]
        sources = {real_path(path) for path in named_files((request.config, request.inputs))}
        return problems + [
            f"'{path}' is what the clip is made from; choose another name"
            for path in sorted(sources & count.keys())
        ]

    def write(self, clip: Clip) -> None:
        """Decode the clip and write everything."""
        if self.latents is not None:
            clip.save_latents(self.latents)
        sound_only = self.clip is not None and self.is_sound
        if self.clip is not None and not sound_only:
            target = sys.stdout.buffer if self.is_stdout else self.clip
            clip.save(
                target,
                fragmented=self.stream,
                frames=self.frames,
                encoding=self.encoding,
                joined=self.joined,
            )
        elif self.frames is not None:
            clip.save_frames(self.frames)
        if self.clip is not None and sound_only:
            clip.save_audio(self.clip)
        if self.audio is not None:
            clip.save_audio(self.audio)
