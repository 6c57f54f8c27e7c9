"""Sound of joined clips: in pieces, and the same samples as if it were read whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.engine import F32
from ltx2rt.errors import MediaError
from ltx2rt.media.audio import to_int16
from ltx2rt.media.encoding import VideoEncoding
from ltx2rt.media.resample import resample, resampled_pieces
from ltx2rt.media.sound import mixed_down, read_audio, stereo_pieces
from ltx2rt.media.writer import VideoWriter
from ltx2rt.results.joined import Stretch, join_clips, write_joined
from ltx2rt.results.joined_sound import JoinedSound
from tests.unit.media_clips import write_clip

LOSSLESS = VideoEncoding(codec="ffv1")
SECONDS, SHARED, RATE = 30, 3, 48000


def clip(path: Path, rate: int, seed: int) -> Path:
    """A frame a second, with noise of 16 bits."""
    noise = np.random.default_rng(seed).integers(-9999, 9999, (2, SECONDS * rate)) / 32768
    with VideoWriter(path, 64, 64, 1, (noise.astype(np.float32), rate), encoding=LOSSLESS) as w:
        w.write(np.zeros((SECONDS, 64, 64, 3), np.uint8))
    return path


@pytest.mark.parametrize(("rate", "most"), [(RATE, 10e6), (44100, 30e6)])
def test_clips_are_joined_without_holding_their_sound(
    rate: int, most: float, tmp_path: Path
) -> None:
    """Each is 11 MB of float32; held are three seconds of it, a piece and its filter's windows."""
    one, two = clip(tmp_path / "a.mkv", RATE, 1), clip(tmp_path / "b.mkv", rate, 2)
    target = tmp_path / "c.mkv"
    tracemalloc.start()
    try:
        join_clips([one, two], target, overlap=SHARED, encoding=LOSSLESS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most  # measured 7.0e6 and 22e6; 74e6 and 73e6 where sounds were read whole

    first, second = read_audio(one)[0], resample(read_audio(two)[0], rate, RATE)
    count = SHARED * RATE
    share = np.linspace(0, 1, count + 2, dtype=np.float32)[1:-1]
    mixed = first[:, -count:] * (1 - share) + second[:, :count] * share
    # the first is written as the bits that it was, the second is none of 16 bits any more
    parts = [first[:, :-count], np.concatenate([mixed, second[:, count:]], axis=1)]
    want = np.concatenate([to_int16(part)[0] for part in parts])
    np.testing.assert_array_equal(read_audio(target)[0].T * 32768, want)


def test_a_clip_is_scaled_as_one(tmp_path: Path) -> None:
    """One sample between two steps, far behind, and the pieces before it are scaled, too; NaN is
    warned of once.
    """
    wave = np.full((2, 3 * RATE), 0.25, np.float32)
    wave[0, -1], wave[1, 5], wave[1, -5] = 0.3, np.nan, np.nan
    pieces = np.array_split(wave, 7, axis=1)
    parts = list(JoinedSound(RATE).stretch((lambda: pieces, RATE), 3 * RATE, 0))
    assert {told for _, told in parts} == {False}
    stretch = Stretch(
        frames=[np.zeros((3, 64, 64, 3), np.uint8)], num_frames=3, sound=(lambda: pieces, RATE)
    )
    path = tmp_path / "a.mkv"
    with pytest.warns(UserWarning, match=r"^2 audio samples are NaN") as warned:
        write_joined(path, [stretch], 64, 64, 1.0, RATE, encoding=LOSSLESS)
    assert len(warned) == 1
    np.testing.assert_array_equal(read_audio(path)[0].T * 32768, to_int16(wave)[0])


@pytest.mark.parametrize("size", [1000, 70_000])
@pytest.mark.parametrize("rates", [(44100, 48000), (48000, 44100), (48000, 8000), (8000, 8000)])
def test_resampled_pieces(rates: tuple[int, int], size: int) -> None:
    wave = np.random.default_rng(3).standard_normal((2, 140_001)).astype(np.float32)
    pieces = [wave[:, i : i + size] for i in range(0, wave.shape[1], size)]
    got = np.concatenate(list(resampled_pieces(pieces, *rates)), axis=1)
    np.testing.assert_array_equal(got, resample(wave, *rates))
    assert not list(resampled_pieces([], *rates))


def test_stereo_pieces_are_the_sound(tmp_path: Path) -> None:
    """A late one, of one channel; a clip without any has nothing to read."""
    wave: F32 = np.random.default_rng(4).standard_normal((1, 2 * RATE)).astype(np.float32) / 9
    path = write_clip(tmp_path / "a.mkv", range(80), sound=wave, sound_from_s=1.5)
    whole, rate = read_audio(path)
    assert whole.shape[1] > 3 * RATE
    pieces = list(stereo_pieces(path))
    assert len(pieces) > 1
    np.testing.assert_array_equal(np.concatenate(pieces, 1), mixed_down(whole, "mono", rate))
    with pytest.raises(MediaError, match="no audio stream"):
        list(stereo_pieces(write_clip(tmp_path / "b.mkv", range(2))))
