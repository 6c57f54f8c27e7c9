"""Small sound and video files for tests of pipelines that begin with one."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from ltx2rt.media.audio import write_audio
from ltx2rt.media.writer import VideoWriter

RATE = 44100


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    """Two different tones, `[2, N]`, every sample a whole number of 1/32768."""
    time = np.arange(round(seconds * rate)) / rate
    waves = np.stack([0.4 * np.sin(2 * np.pi * 330 * time), 0.3 * np.sin(2 * np.pi * 500 * time)])
    return (np.rint(waves * 32768) / 32768).astype(np.float32)


def sound_file(path: Path, seconds: float, rate: int = RATE) -> Path:
    """A stereo file of 16 bits."""
    write_audio(path, tone(seconds, rate), rate)
    return path


def mono_file(path: Path, seconds: float, layout: str = "mono") -> Path:
    """A file whose channels all hold the first tone."""
    samples = (tone(seconds)[:1] * 32768).astype(np.int16)
    count = {"mono": 1, "5.1": 6}[layout]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
        block = np.ascontiguousarray(np.repeat(samples, count, 0).T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def odd_file(path: Path, width: int, height: int) -> Path:
    """One black frame of any size, lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24, width=width, height=height)
        stream.pix_fmt = "bgr0"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


def video_file(
    path: Path,
    num_frames: int = 17,
    height: int = 64,
    width: int = 64,
    frame_rate: float = 24.0,
    *,
    sound: bool = True,
) -> Path:
    """A moving gradient, with the tones."""
    rows = np.linspace(0, 1, height)[:, None, None] * np.ones((1, width, 3))
    frames = np.stack([(rows + i / num_frames) % 1 for i in range(num_frames)])
    audio = (tone(num_frames / frame_rate + 0.1), RATE) if sound else None
    with VideoWriter(path, width, height, frame_rate, audio) as writer:
        writer.write(frames.astype(np.float32))
    return path
