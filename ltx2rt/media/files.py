"""Output paths checked before any work, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from ltx2rt.errors import MediaError, OptionError
from ltx2rt.media import pyav as av
from ltx2rt.partial import Partial, remove_leftovers

OutputKind = Literal["video", "audio", "frames", "image", "animation"]

VIDEO_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
AUDIO_FORMATS = {".wav": "wav", ".flac": "flac", ".mp3": "mp3", ".m4a": "ipod"}
#: videos that are read, not written
FURTHER_VIDEOS = (".m4v", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg")
#: pictures that are read
STILLS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
ANIMATION_FORMATS = {".gif": "GIF", ".webp": "WEBP"}
_ALLOWED = {
    "video": f"{', '.join(VIDEO_FORMATS)} for video",
    "audio": f"{', '.join(AUDIO_FORMATS)} for audio",
    "image": ".png for an image",
    "animation": f"{', '.join(ANIMATION_FORMATS)} for an animation without sound",
    "frames": "a directory (no extension) for single frames",
}


def is_video(path: Path) -> bool:
    """Whether a file to read is a video, by its extension."""
    return path.suffix.lower() in (*VIDEO_FORMATS, *FURTHER_VIDEOS)


def is_still(path: Path) -> bool:
    """Whether a file to read is a picture, by its extension."""
    return path.suffix.lower() in STILLS


def check_output_path(path: str | Path, *kinds: OutputKind, may_exist: bool = False) -> OutputKind:
    """Find out, before any work, what is to be written and that it can be.

    Args:
        path: the output file, or the directory that will hold PNG frames.
        kinds: what the caller can write; video, audio and frames if none is given.
        may_exist: a folder of frames may hold files already.

    Returns:
        The kind named by the extension; no extension means "frames".

    Raises:
        MediaError: unknown extension, missing or unwritable directory, or a directory in the way.
    """
    path = Path(path)
    allowed = kinds or ("video", "audio", "frames")
    kind = _kind_of(path)
    if kind is None or kind not in allowed:
        raise MediaError(
            f"cannot write '{path}': the extension '{path.suffix}' is not allowed here; allowed:"
            f" {'; '.join(_ALLOWED[k] for k in allowed)}."
        )
    if kind == "frames":
        check_writable(path)
        _check_frames_directory(path, may_exist=may_exist)
    else:
        check_file_path(path)
    return kind


def check_file_path(path: str | Path) -> None:
    """Find out whether a file of any type can be written as `path`.

    Raises:
        MediaError: something else is in the way, or its directory is missing or not writable.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise MediaError(f"cannot write '{path}': it exists and is not a regular file.")
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise MediaError(f"cannot write '{path}': it is a link that leads to itself.")
        check_writable(target)
    check_writable(path)


def check_fragmented(path: str | Path) -> None:
    """Refuse a fragmented file of a format that has no fragments.

    Raises:
        OptionError: the file is an .mkv or .webm.
    """
    if VIDEO_FORMATS.get(Path(path).suffix.lower()) in ("matroska", "webm"):
        raise OptionError(
            f"a fragmented file is .mp4 or .mov, not '{Path(path).name}'; .mkv and .webm files can"
            " be played while they grow anyway."
        )


def _kind_of(path: Path) -> OutputKind | None:
    suffix = path.suffix.lower()
    if suffix in VIDEO_FORMATS:
        return "video"
    if suffix in AUDIO_FORMATS:
        return "audio"
    if suffix == ".png":
        return "image"
    if suffix in ANIMATION_FORMATS:
        return "animation"
    return "frames" if not suffix else None


def check_writable(path: str | Path) -> None:
    """Find out whether a file of any type can be created beside `path`.

    Raises:
        MediaError: its directory does not exist or is not writable.
    """
    try:
        named = os.fsencode(path)
    except UnicodeEncodeError:
        named = b"\0"
    if b"\0" in named:
        raise MediaError(f"cannot write {str(path)!r}: no file can have such a name.")
    directory = Path(path).absolute().parent
    if not directory.is_dir():
        raise MediaError(
            f"cannot write '{path}': the directory '{directory}' does not exist; create it first."
        )
    try:  # permission bits say nothing about read-only mounts or root, so create a file
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise MediaError(
            f"cannot write '{path}': the directory '{directory}' is not writable"
            f" ({error.strerror})."
        ) from error


def check_folder(path: Path) -> None:
    """Refuse a folder to write into whose name a file has.

    Raises:
        MediaError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise MediaError(f"cannot write into '{path}': it is a file; name a directory.")


def _check_frames_directory(path: Path, *, may_exist: bool) -> None:
    check_folder(path)
    if not may_exist and path.is_dir() and any(path.iterdir()):
        raise MediaError(
            f"cannot write frames to '{path}': the directory is not empty;"
            " name another one or empty it."
        )


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn every error of the system or of libav into one sentence about `path`.

    Raises:
        MediaError: instead of OSError and av.FFmpegError.
    """
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = (
                f"the disk is full: '{path}' could not be written and the partial file was"
                " removed; free some space or choose another directory."
            )
        else:
            text = f"cannot write '{path}': {error.strerror or error}."
        raise MediaError(text) from error


class OutputPipe:
    """Standard output or a pipe for libav: bytes leave as they are made and cannot be taken back.

    As `OutputFile`, without `seek`, so libav knows that it cannot go back.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: BaseException | None = None
        self.complete = False

    def write(self, data: bytes) -> int:
        """Write all of `data` at once, or keep the error for `guard`."""
        if self.error is None:
            try:
                self._stream.write(data)
                self._stream.flush()
            except BaseException as error:  # also KeyboardInterrupt: guard raises it
                self.error = error
        return len(data)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run libav calls, then raise the error that a write had in one of them.

        Raises:
            BrokenPipeError: nobody reads any more.
            MediaError: instead of other errors of the system and of libav.
        """
        try:
            with writing("-"):
                yield
        except MediaError as error:
            raise self.error or error from error
        if self.error is not None:
            raise self.error

    def commit(self) -> None:
        """All bytes left."""
        self.complete = True

    def discard(self) -> None:
        """What left cannot be taken back."""


class OutputFile:
    """A file object for libav that becomes `path` only when it is complete.

    Everything goes to a temporary file beside the target. `commit` renames it, `discard` removes
    it. An exception that leaves a callback is garbled by libav or printed and lost, so a write
    keeps its error and `guard` raises it. Unbuffered, because libav buffers itself and its second
    pass (faststart) re-opens the file by `name` to read.
    """

    def __init__(self, path: Path, *, in_place: bool = False) -> None:
        """Create the file.

        Args:
            path: where the finished file goes; a symbolic link is followed.
            in_place: write to the target itself (for readers that follow its growth).

        Raises:
            MediaError: the file cannot be created.
        """
        self.path = path
        self.target = Path(os.path.realpath(path))
        self.error: BaseException | None = None
        self.complete = False  # true once the target has its name
        if self.target.exists() and not self.target.is_file():
            raise MediaError(f"cannot write '{path}': it exists and is not a regular file.")
        self._partial: Partial | None = None
        with writing(path):
            if in_place:
                remove_leftovers(self.target)
                self._file: BinaryIO = self.target.open("wb+", buffering=0)
            else:
                self._partial = Partial(self.target, buffering=0)
                self._file = self._partial.file
        self.name = str(self._partial.path if self._partial else self.target)

    def write(self, data: bytes) -> int:
        """Write all of `data`, or keep the error for `guard` and drop everything from then on."""
        if self.error is None:
            try:
                view = memoryview(data)
                while view:  # an unbuffered file may take only a part at once
                    view = view[self._file.write(view) :]
            except BaseException as error:  # also KeyboardInterrupt: guard raises it
                self.error = error
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run libav calls, then raise the error that a write had in one of them.

        Raises:
            MediaError: instead of OSError and av.FFmpegError.
        """
        with writing(self.path):
            try:
                yield
            finally:
                if self.error is not None:
                    raise self.error

    def commit(self) -> None:
        """Give the complete file its name."""
        with writing(self.path):
            if self._partial is not None:
                self._partial.commit()
            self._file.close()
        self.complete = True

    def discard(self) -> None:
        """Remove what was written."""
        if self._partial is not None:
            self._partial.discard()
            return
        self._file.close()
        self.target.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            if not self.complete:
                self.discard()
