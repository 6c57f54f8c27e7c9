"""Reading videos and sound back: counts, windows, sample formats, and files that are not media."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ltx2rt.errors import MediaError, OptionError
from ltx2rt.media.audio import write_audio
from ltx2rt.media.reader import (
    iterate_video_frames,
    probe_video,
    read_audio,
    read_video_frames,
)
from ltx2rt.media.writer import VideoWriter

RATE = 16000


def ramp(num_frames: int) -> np.ndarray:
    """Flat frames whose grey value tells their number."""
    grey = (np.arange(num_frames, dtype=np.float32) + 1) * 0.03
    return np.broadcast_to(grey[:, None, None, None], (num_frames, 32, 48, 3))


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(v)) - 1 for v in frames.mean((1, 2, 3)) / 255 / 0.03]


def video(path: Path, num_frames: int = 24, *, sound: bool = True, **options) -> Path:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2 * RATE)).astype(np.float32)
    with VideoWriter(path, 48, 32, 24, (wave, RATE) if sound else None, **options) as writer:
        writer.write(ramp(num_frames))
    return path


@pytest.mark.parametrize("fragmented", [False, True])
def test_probe(tmp_path, fragmented):
    info = probe_video(video(tmp_path / "a.mp4", fragmented=fragmented, metadata={"title": "T"}))
    assert (info.width, info.height, info.num_frames) == (48, 32, 24)
    assert info.frame_rate == Fraction(24)
    assert info.duration_s == 1.0
    assert (info.has_audio, info.audio_sampling_rate, info.audio_channels) == (True, RATE, 2)
    assert (info.colour_matrix, info.colour_range) == (1, 1)
    assert info.metadata["title"] == "T"
    silent = probe_video(video(tmp_path / "b.mkv", 3, sound=False))
    assert (silent.num_frames, silent.has_audio) == (3, False)  # counted: no header field


def test_frames_in_order_up_to_the_cap(tmp_path):
    path = video(tmp_path / "a.mp4")
    assert numbers(read_video_frames(path)) == list(range(24))
    assert numbers(read_video_frames(path, 5)) == list(range(5))
    assert read_video_frames(path, 100).shape == (24, 32, 48, 3)
    with pytest.raises(OptionError, match="frame_cap"):
        read_video_frames(path, 0)


def test_audio_of_a_file_that_cannot_be_searched(tmp_path, monkeypatch):
    wave = np.random.default_rng(0).uniform(-1, 1, (2, RATE)).astype(np.float32)
    write_audio(tmp_path / "a.wav", wave, RATE)
    want, _ = read_audio(tmp_path / "a.wav", 0.25, 0.5)
    monkeypatch.setattr("ltx2rt.media.reader._seek", lambda *_: False)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 0.25, 0.5)[0], want)


def encode(path: Path, codec: str, sample_format: str, samples: np.ndarray, layout: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.codec_context.layout = layout
        stream.codec_context.format = sample_format
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), sample_format, layout)
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "sample_format", "dtype", "scale", "zero"),
    [
        ("pcm_u8", "u8", np.uint8, 128, 128),
        ("pcm_s16le", "s16", np.int16, 2**15, 0),
        ("pcm_s32le", "s32", np.int32, 2**31, 0),
        ("pcm_f32le", "flt", np.float32, 1, 0),
        ("pcm_f64le", "dbl", np.float64, 1, 0),
    ],
)
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_sample_formats(tmp_path, codec, sample_format, dtype, scale, zero, layout):
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    rng = np.random.default_rng(0)
    samples = rng.uniform(-1, 1, (500, channels)) * scale * 0.99 + zero
    samples = samples.astype(dtype)
    got, rate = read_audio(encode(tmp_path / "a.wav", codec, sample_format, samples, layout))
    assert rate == RATE
    want = ((samples.astype(np.float64) - zero) / scale).astype(np.float32).T
    np.testing.assert_array_equal(got, want)


def test_audio_window(tmp_path):
    wave = np.random.default_rng(0).uniform(-1, 1, (2, 2 * RATE)).astype(np.float32)
    for name in ("a.wav", "a.flac"):
        write_audio(tmp_path / name, wave, RATE)
        whole, _ = read_audio(tmp_path / name)
        assert whole.shape == (2, 2 * RATE)
        for start, length in ((0.0, 0.5), (0.3, 0.7), (1.5, 0.1), (1.9, 5.0), (0.00007, 0.01)):
            got, _ = read_audio(tmp_path / name, start, length)
            first = round(start * RATE)
            want = whole[:, first : first + round(length * RATE)]
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(read_audio(tmp_path / name, 1.25)[0], whole[:, 20000:])
        with pytest.raises(MediaError, match="no sound"):
            read_audio(tmp_path / name, 3.0)


READERS = [probe_video, read_video_frames, read_audio]


@pytest.mark.parametrize("read", READERS)
def test_not_media(tmp_path, read):
    with pytest.raises(MediaError, match="no such file"):
        read(tmp_path / "missing.mp4")
    with pytest.raises(MediaError, match="directory"):
        read(tmp_path)
    for content in (b"", b"plain text, not media\n" * 50, bytes(5000)):
        path = tmp_path / "bad.mp4"
        path.write_bytes(content)
        with pytest.raises(MediaError, match=r"bad\.mp4"):
            read(path)


def test_missing_streams(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros((2, 100), np.float32), RATE)
    for read in READERS[:2]:
        with pytest.raises(MediaError, match="no video stream"):
            read(tmp_path / "a.wav")
    with pytest.raises(MediaError, match="no audio stream"):
        read_audio(video(tmp_path / "a.mp4", 2, sound=False))


def test_playlists_cannot_reach_other_files(tmp_path):
    secret = tmp_path / "secret.wav"
    write_audio(secret, np.zeros((2, 100), np.float32), RATE)
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile {secret}\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError):
            read_audio(tmp_path / name)


def test_truncated_files(tmp_path):
    noise = np.random.default_rng(0).random((40, 64, 64, 3), np.float32)
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 64, 24) as writer:
        writer.write(noise)
    data = path.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match="truncated"):
        read_video_frames(cut)
    seen = []
    with pytest.raises(MediaError, match="truncated"):
        seen.extend(iterate_video_frames(cut))
    assert read_video_frames(cut, 3).shape == (3, 64, 64, 3)
    cut.write_bytes(data[:400])
    with pytest.raises(MediaError):
        probe_video(cut)
