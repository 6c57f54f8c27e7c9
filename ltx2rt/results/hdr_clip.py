"""A generated clip of high dynamic range: EXR frames beside a video file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ltx2rt.engine import F32
from ltx2rt.errors import OptionError
from ltx2rt.media.encoding import VideoEncoding
from ltx2rt.media.exr import ExrFolder, exr_folder
from ltx2rt.media.hdr import HdrFormat, srgb_signal
from ltx2rt.media.writer import VideoWriter
from ltx2rt.results.clip import Clip


@dataclass(slots=True, kw_only=True, eq=False)
class HdrClip(Clip):
    """A clip whose decoded frames are codes of a log curve, which `hdr` explains."""

    @property
    def curve(self) -> HdrFormat:
        """What the codes mean, and what the EXR files hold."""
        assert self.hdr is not None
        return self.hdr

    def exr_frames(self) -> Iterator[F32]:
        """Chunks of float32 `[f, H, W, 3]` as the EXR files hold them, not rounded."""
        return (self.curve.decode(codes) for codes in self.decoded_frames())

    def float_frames(self) -> Iterator[F32]:
        """The picture for an ordinary screen: light above diffuse white is cut."""
        return (srgb_signal(self.curve.linear_rec709(codes)) for codes in self.decoded_frames())

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
        """Write `<stem>_exr/frame_00000.exr`, ... and a video file beside them in one pass.

        Raises:
            MediaError: a path cannot be written, or the folder is not empty.
            UnsupportedError: OpenEXR is not installed.
            OptionError: a fragmented file, a stream, PNG frames or an encoding were asked for.
        """
        if (
            fragmented
            or frames is not None
            or encoding
            or joined
            or not isinstance(path, str | Path)
        ):
            raise OptionError(
                "a clip of high dynamic range goes to a file with EXR frames beside it, encoded as "
                "it is: not to a stream, fragments, PNG frames or another codec."
            )
        exr = ExrFolder(exr_folder(path), self.curve.exr_attributes)
        with self.with_sound(self.decoded_frames()) as chunks, exr, self.writer(path) as writer:
            for codes in chunks:
                exr.write(self.curve.decode(codes))
                writer.write(self.video_frames(codes))

    def writer(self, path: str | Path) -> VideoWriter:
        """Of the video file."""
        return self._writer(VideoWriter, path)

    def _writer(self, kind: type[VideoWriter], path: str | Path) -> VideoWriter:
        return kind(
            path,
            self.width,
            self.height,
            self.frame_rate,
            audio=(self.audio, self.audio_sampling_rate) if self.has_audio else None,
            metadata=self.tags(Path(path).parent),
        )

    def video_frames(self, codes: F32) -> F32:
        """Codes as the video file's writer takes them."""
        return srgb_signal(self.curve.linear_rec709(codes))


@dataclass(slots=True, kw_only=True, eq=False)
class HlgClip(HdrClip):
    """A clip of high dynamic range whose video file is an HLG master."""

    def writer(self, path: str | Path) -> VideoWriter:
        from ltx2rt.media.hlg_writer import HlgWriter

        return self._writer(HlgWriter, path)

    def video_frames(self, codes: F32) -> F32:
        return self.curve.linear_rec709(codes)
