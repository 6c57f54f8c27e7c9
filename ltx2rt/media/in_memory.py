"""Images, sound and video that a program holds in memory, as files that any input can name.

A request names files: so it can be recorded, repeated and resumed. What has no file yet is written
without loss into the cache folder, under a name made from its content: the same input is the same
file, and `ltx2rt cache clear` removes it.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ltx2rt.env import cache_dir
from ltx2rt.errors import MediaError, ShapeError
from ltx2rt.media import pyav as av
from ltx2rt.media.encoding import VideoEncoding
from ltx2rt.media.still_reader import IMAGE_ERRORS
from ltx2rt.media.writer import VideoWriter
from ltx2rt.partial import Partial

#: folder of the cache
FOLDER = "inputs"

#: first name of libav's format -> extension
_VIDEOS = {"mov": ".mp4", "matroska": ".mkv", "avi": ".avi", "mpegts": ".ts", "mpeg": ".mpg"}
_SOUNDS = {"wav": ".wav", "flac": ".flac", "mp3": ".mp3", "mov": ".m4a", "ogg": ".ogg"} | {
    "matroska": ".mka", "aac": ".aac",
}  # fmt: skip
_IMAGES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
#: modes of Pillow that a PNG file holds as they are
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def image_file(image: Image.Image | NDArray[np.uint8] | bytes) -> Path:
    """An image in memory as a file.

    ```python
    first = ltx2rt.image_file(Image.open("photo.png").rotate(90))
    pipe(prompt="A harbour wakes up.", images=[ltx2rt.ImageCondition(path=first)])
    ```

    Args:
        image: of Pillow; `[H, W, 3]` or `[H, W]` uint8; or the content of an image file.

    Raises:
        MediaError: bytes that are no image, or a mode of Pillow that PNG does not hold.
        ShapeError: an array of another shape or type.
        OSError, OptionError: the cache folder cannot be written.
    """
    if isinstance(image, bytes):
        return _kept(image, _image_suffix(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or not image.size:
            raise ShapeError(f"an image of {_told(image)} cannot be used; give [H, W, 3] uint8.")
        image = Image.fromarray(image)
    if image.mode not in _PNG_MODES:
        raise MediaError(
            f"an image of Pillow's mode {image.mode} cannot be used; convert it to RGB "
            '(image.convert("RGB")).'
        )
    content = io.BytesIO()
    told = {name: image.info[name] for name in ("icc_profile", "exif") if image.info.get(name)}
    image.save(content, "PNG", **told)
    return _kept(content.getvalue(), ".png")


def sound_file(sound: NDArray[np.float32] | bytes, sampling_rate: int | None = None) -> Path:
    """A sound in memory as a file.

    ```python
    voice = ltx2rt.sound_file(samples, sampling_rate=48_000)
    pipe(prompt="She sings.", audio=voice)
    ```

    Args:
        sound: `[channels, N]` or `[N]` float32 in [-1, 1], kept as it is; or the content of a
            sound file.
        sampling_rate: of samples, in Hz.

    Raises:
        MediaError: bytes that are no sound.
        ShapeError: an array of another shape or type, or without a rate.
        OSError, OptionError: the cache folder cannot be written.
    """
    if isinstance(sound, bytes):
        return _kept(sound, _media_suffix(sound, "sound", _SOUNDS))
    samples = sound[None] if sound.ndim == 1 else sound
    if samples.ndim != 2 or not np.issubdtype(samples.dtype, np.floating) or len(samples) > 8:
        raise ShapeError(
            f"a sound of {_told(sound)} cannot be used; give [channels, N] float32 of at most 8 "
            "channels."
        )
    if sampling_rate is None or sampling_rate < 1:
        raise ShapeError(f"samples need their rate in Hz, found sampling_rate={sampling_rate}.")
    return _kept(_wav(samples.astype("<f4"), sampling_rate), ".wav")


def video_file(
    frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | bytes,
    frame_rate: float | None = None,
    sound: tuple[NDArray[np.float32], int] | None = None,
) -> Path:
    """A video in memory as a file.

    ```python
    source = ltx2rt.video_file(frames, frame_rate=24)
    with ltx2rt.RetakePipeline(bundle) as retake:
        retake(prompt="It snows.", video=source, start_time=0.1, end_time=0.3).save("out.mp4")
    ```

    Args:
        frames: `[F, H, W, 3]` uint8, or several of them one after another (`list(clip.frames)`),
            of even sizes, kept as they are; or the content of a video file.
        frame_rate: of frames, in frames per second.
        sound: `[2, N]` float32 and its rate in Hz, kept as 16 bits.

    Raises:
        MediaError: bytes that are no video.
        ShapeError: an array of another shape or type, or without a rate.
        OSError, OptionError: the cache folder cannot be written.
    """
    if isinstance(frames, bytes):
        return _kept(frames, _media_suffix(frames, "video", _VIDEOS))
    chunks = [frames] if isinstance(frames, np.ndarray) else list(frames)
    wrong = [c for c in chunks if c.dtype != np.uint8 or c.ndim != 4 or c.shape[3] != 3]
    if wrong or not sum(map(len, chunks)):
        found = _told(wrong[0]) if wrong else "no frames"
        raise ShapeError(f"a video of {found} cannot be used; give [F, H, W, 3] uint8.")
    if len({chunk.shape[1:3] for chunk in chunks}) > 1:
        raise ShapeError("a video cannot be used whose frames have several sizes.")
    if frame_rate is None:
        raise ShapeError("frames need their rate: pass frame_rate, in frames per second.")
    arrays: list[NDArray[Any]] = [*chunks, *([] if sound is None else [sound[0]])]
    digest = hashlib.sha256(f"{frame_rate} {sound and sound[1]}".encode())
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)

    def write(path: Path) -> None:
        height, width = chunks[0].shape[1:3]
        encoding = VideoEncoding(codec="ffv1")
        with VideoWriter(path, width, height, frame_rate, sound, encoding=encoding) as writer:
            for chunk in chunks:
                writer.write(chunk)

    return _named(digest.hexdigest(), ".mkv", write)


def _kept(content: bytes, suffix: str) -> Path:
    def write(path: Path) -> None:
        with Partial(path) as part:
            part.file.write(content)

    return _named(hashlib.sha256(content).hexdigest(), suffix, write)


def _named(digest: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """The file of a content, written if it is not there."""
    folder = cache_dir() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest[:32]}{suffix}"
    if not path.exists():
        write(path)
    return path


def _image_suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = str(image.format)
    except IMAGE_ERRORS as error:
        raise MediaError(f"these {len(content)} bytes are no image: {error}.") from error
    return _suffix(kind, "image", _IMAGES)


def _media_suffix(content: bytes, what: str, suffixes: dict[str, str]) -> str:
    try:
        with av.open(io.BytesIO(content)) as container:
            streams = container.streams.video if what == "video" else container.streams.audio
            kind, found = container.format.name.partition(",")[0], len(streams)
    except av.FFmpegError as error:
        raise MediaError(f"these {len(content)} bytes are no {what} file: {error}.") from error
    if not found:
        raise MediaError(f"these {len(content)} bytes hold no {what}.")
    return _suffix(kind, what, suffixes)


def _suffix(kind: str, what: str, suffixes: dict[str, str]) -> str:
    if kind not in suffixes:
        raise MediaError(
            f"these bytes are {what} of the format {kind}; allowed: {', '.join(suffixes)}."
        )
    return suffixes[kind]


def _wav(samples: NDArray[Any], rate: int) -> bytes:
    """A RIFF file of 32-bit floats (WAVE_FORMAT_IEEE_FLOAT)."""
    channels, count = samples.shape
    data = np.ascontiguousarray(samples.T).tobytes()
    layout = struct.pack("<HHIIHHH", 3, channels, rate, rate * channels * 4, channels * 4, 32, 0)
    chunks = [(b"fmt ", layout), (b"fact", struct.pack("<I", count)), (b"data", data)]
    body = b"".join(name + struct.pack("<I", len(text)) + text for name, text in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def _told(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
