"""Compressed sound files, tags of every container, and a video on a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.errors import OptionError
from ltx2rt.media.audio import write_audio
from ltx2rt.media.reader import probe_video, read_tags, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.media.writer import VideoWriter

RATE = 24000
LONGEST_DELAY = 2400  # samples that a codec may put before the sound


def tone() -> np.ndarray:
    time = np.arange(RATE) / RATE
    waves = [np.sin(2 * np.pi * (200 + 400 * time) * time), np.sin(2 * np.pi * 660 * time)]
    return (0.5 * np.stack(waves)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".flac"])
def test_sound_files_keep_tags_and_sound(tmp_path: Path, suffix: str) -> None:
    path, wave = tmp_path / f"a{suffix}", tone()
    write_audio(path, wave, RATE, {"ltx2rt_record": "né {}"})
    assert read_tags(path)["ltx2rt_record"] == "né {}"
    sound, rate = read_audio(path)
    assert rate == RATE
    assert 0 <= sound.shape[1] - RATE <= LONGEST_DELAY
    part = wave[0, LONGEST_DELAY:-LONGEST_DELAY]
    alike = [
        np.corrcoef(sound[0, LONGEST_DELAY + d :][: len(part)], part)[0, 1]
        for d in range(sound.shape[1] - RATE + 1)
    ]
    assert max(alike) > 0.99


def test_a_rate_that_mp3_cannot_carry(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be stored as MP3; allowed: 8000"):
        write_audio(tmp_path / "a.mp3", np.zeros((2, 100), np.float32), 96000)
    assert not list(tmp_path.iterdir())


class Pipe(io.RawIOBase):
    """What cannot go back, and may break after some bytes."""

    def __init__(self, limit: int = 2**30) -> None:
        self.data = bytearray()
        self.limit = limit

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if len(self.data) > self.limit:
            raise BrokenPipeError
        self.data += data
        return len(data)


def frames() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 255, (12, 32, 48, 3), dtype=np.uint8)


def test_a_video_on_a_pipe_equals_the_fragmented_file(tmp_path: Path) -> None:
    pipe, target = Pipe(), tmp_path / "a.mp4"
    for path in (pipe, target):
        writer = VideoWriter(path, 48, 32, 12, (tone(), RATE), fragmented=True, metadata={"k": "v"})
        with writer:
            writer.write(frames())
    (tmp_path / "b.mp4").write_bytes(pipe.data)
    info = probe_video(tmp_path / "b.mp4")
    assert (info.num_frames, info.audio_sampling_rate, info.metadata["k"]) == (12, RATE, "v")
    np.testing.assert_array_equal(read_video_frames(tmp_path / "b.mp4"), read_video_frames(target))


def test_a_reader_that_goes_away_ends_the_video() -> None:
    def write() -> None:
        with VideoWriter(Pipe(limit=2000), 48, 32, 12) as writer:
            for _ in range(20):
                writer.write(frames())

    with pytest.raises(BrokenPipeError):
        write()
