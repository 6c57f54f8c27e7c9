"""Clips whose frames tell their number and whose sound has one beep, stored in awkward ways."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ltx2rt.engine import F32, U8

RATE, WIDTH, HEIGHT, STEP = 48000, 192, 128, 6


def grey(number: int) -> U8:
    """A frame of one value, which tells its number, with a bright corner at the top left."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20 + STEP * (number % 36), np.uint8)
    pixels[:16, :16] = 255
    return pixels


def numbers(frames: U8) -> list[int]:
    """The numbers of frames, read off their middle."""
    height, width = frames.shape[1:3]
    middle = frames[:, height // 2 - 8 : height // 2 + 8, width // 2 - 8 : width // 2 + 8]
    return [round((float(v) - 20) / STEP) for v in middle.mean((1, 2, 3))]


def beep(seconds: float, at_s: float) -> F32:
    """Silence with a tone of 0.05 s, `[1, N]`."""
    time = np.arange(round(seconds * RATE)) / RATE
    inside = (time >= at_s) & (time < at_s + 0.05)
    wave: F32 = (0.8 * np.sin(2 * np.pi * 1000 * time) * inside).astype(np.float32)[None]
    return wave


def beep_at(wave: F32) -> int:
    """The sample at which the sound begins."""
    return int(np.argmax(np.abs(wave[0]) > 0.2))


def write_clip(
    path: Path,
    stamps: Iterable[int],
    *,
    time_base: Fraction = Fraction(1, 24),
    sound: F32 | None = None,
    sound_from_s: float = 0.0,
    rotation: tuple[float, bool, bool] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    sound_codec: str = "aac",
    prepare: Any = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A clip of one frame a time stamp.

    Args:
        stamps: in units of `time_base`.
        sound_from_s: when the sound begins.
        rotation: of the display matrix: degrees, and whether it mirrors and flips.
        prepare: called with the stream before the first frame.
        options: of the encoder.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=24, options=options or {"crf": "10"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pix_fmt
        video.codec_context.time_base = time_base
        if rotation is not None:
            video.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        if prepare is not None:
            prepare(video)
        audio = None
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=RATE, layout="mono")
        packets = []
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(grey(number), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamp, time_base
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None and sound is not None:
            block = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
            block.sample_rate, block.time_base = RATE, Fraction(1, RATE)
            block.pts = round(sound_from_s * RATE)
            resampler = av.AudioResampler(format=audio.format.name, layout="mono", rate=RATE)
            for part in (*resampler.resample(block), *resampler.resample(None)):
                packets += audio.encode(part)
            packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * (p.time_base or 0))):
            container.mux(packet)
    return path


def hide_first(source: Path, target: Path, seconds: float) -> Path:
    """A copy without encoding again, whose first frames an edit list hides: stamps below 0."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is None:
                continue
            shift = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = streams[packet.stream.index]
            new.mux(packet)
    return target
