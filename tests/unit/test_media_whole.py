"""Media files that end too early are known by their own sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.errors import MediaError
from ltx2rt.media.audio import write_audio
from ltx2rt.media.reader import read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.media.whole import is_cut_off, is_finished
from ltx2rt.media.writer import VideoWriter


def clip(path: Path, *, fragmented: bool = False) -> bytes:
    sound = np.zeros((2, 24000), np.float32), 24000
    with VideoWriter(path, 32, 32, 8, sound, fragmented=fragmented) as writer:
        writer.write(np.zeros((8, 32, 32, 3), np.uint8))
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_ten_bytes_cut_off_a_source(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    whole = clip(path)
    assert is_finished(path)
    assert not is_cut_off(path)
    path.write_bytes(whole + b"junk")  # what a camera appends hurts nobody
    assert len(read_video_frames(path)) == 8
    for cut in (1, 10, 1000):
        path.write_bytes(whole[:-cut])
        assert is_cut_off(path)
        assert not is_finished(path)
        with pytest.raises(MediaError, match="its end is missing"):
            read_video_frames(path)


def test_a_stream_is_finished_by_its_index(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    whole = clip(path, fragmented=True)
    assert is_finished(path)
    path.write_bytes(whole[: whole.rindex(b"mfra") - 4])  # the index was not written
    assert not is_finished(path)
    assert not is_cut_off(path)  # as a source it is as good as it is long
    assert len(read_video_frames(path)) == 8


def test_sound_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, np.zeros((2, 24000), np.float32), 24000, {})
    whole = path.read_bytes()
    assert read_audio(path)[0].shape == (2, 24000)
    path.write_bytes(whole[:-10])
    with pytest.raises(MediaError, match="its end is missing"):
        read_audio(path)
    path.write_bytes(whole[:4] + b"\xff\xff\xff\xff" + whole[8:-10])  # from a pipe: no size
    assert not is_cut_off(path)
