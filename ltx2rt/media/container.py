"""Media files opened for reading: only local ones, which may not refer to others (playlists)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ltx2rt.errors import MediaError
from ltx2rt.file_kind import CLIP, PICTURE, name_of
from ltx2rt.media import pyav as av
from ltx2rt.media.whole import is_cut_off

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_LOCAL_ONLY = {"protocol_whitelist": "file"}
_ATTACHED_PICTURE = 0x400  # libav's AV_DISPOSITION_ATTACHED_PIC: the cover of a sound file


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[InputContainer]:
    """Open a media file; what libav raises inside becomes a MediaError about `path`."""
    path = Path(path)
    if not path.is_file():
        what = "it is a directory" if path.is_dir() else "there is no such file"
        raise MediaError(f"cannot read {kind} from '{path}': {what}.")
    try:
        if is_cut_off(path):
            raise MediaError(
                f"cannot read {kind} from '{path}': its end is missing; copy or write it again."
            )
        with av.open(str(path.absolute()), "r", options=_LOCAL_ONLY) as container:
            yield container
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        other = name_of(path, besides=[PICTURE, CLIP])
        if path.suffix.lower() == ".webp":
            other = "a WebP that libav does not read, as animations are: write it as .mp4 or .gif"
        found = f"it is {other}" if other else "the file is damaged, truncated or not a media file"
        raise MediaError(
            f"cannot read {kind} from '{path}': {found}"
            f" ({getattr(error, 'strerror', None) or error})."
        ) from error


def has_picture(container: InputContainer) -> bool:
    """Whether a file holds a video, be it of one frame; the cover of a sound file is none."""
    return any(not int(s.disposition) & _ATTACHED_PICTURE for s in container.streams.video)


def video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """The first video stream.

    Raises:
        MediaError: there is none.
    """
    for stream in container.streams.video:
        if not int(stream.disposition) & _ATTACHED_PICTURE:
            return stream
    raise MediaError(f"cannot read video from '{path}': the file has no video stream.")


def audio_stream(container: InputContainer, path: str | Path) -> AudioStream:
    """The first audio stream.

    Raises:
        MediaError: there is none.
    """
    if not container.streams.audio:
        raise MediaError(f"cannot read audio from '{path}': the file has no audio stream.")
    return container.streams.audio[0]


def decoded_frames(container: InputContainer, path: str | Path) -> Iterator[VideoFrame]:
    """What the first video stream shows, in order; frames that an edit list hides are none.

    Raises:
        MediaError: there is no such stream, or the file breaks off.
    """
    stream = video_stream(container, path)
    stream.thread_type = "AUTO"
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError(
                f"cannot read video from '{path}': the file is truncated; copy or write it again."
            )
        yield from packet.decode()
