"""Codecs, quality and presets of video files, and animations: read back, with their record."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ltx2rt.errors import OptionError, ShapeError, UnsupportedError
from ltx2rt.media.animation import animation_text, frame_times_ms, write_animation
from ltx2rt.media.audio import write_audio
from ltx2rt.media.color import (
    cropped,
    frame_shape,
    pack_yuv422p10,
    rgb_to_i420,
    rgb_to_yuv422p10,
    to_uint8,
)
from ltx2rt.media.encoding import ENCODERS, FILE_CODECS, VideoEncoding
from ltx2rt.media.reader import probe_video, read_tags, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.media.writer import VideoWriter

COLOURS = np.array([(0.9, 0.1, 0.2), (0.1, 0.8, 0.3), (0.2, 0.2, 0.9), (0.5, 0.5, 0.5)], np.float32)
RATE = 44100
CASES = [(suffix, codec) for suffix, codecs in FILE_CODECS.items() for codec in codecs]


def patches(num_frames: int) -> np.ndarray:
    """Four flat patches `[f, 64, 64, 3]`."""
    return np.repeat(COLOURS.reshape(1, 2, 2, 3).repeat(32, 1).repeat(32, 2), num_frames, 0)


def write(path: Path, encoding: VideoEncoding | None = None) -> Path:
    wave = 0.5 * np.sin(np.arange(RATE) * (2 * np.pi * 440 / RATE))
    sound = np.stack([wave, -wave]).astype(np.float32), RATE
    tags = {"ltx2rt_record": '{"a": "né"}'}
    with VideoWriter(path, 64, 64, 24, sound, metadata=tags, encoding=encoding) as writer:
        writer.write(patches(9))
    return path


@pytest.mark.parametrize(("suffix", "codec"), CASES)
def test_every_codec_in_every_file(tmp_path: Path, suffix: str, codec: str) -> None:
    encoding = VideoEncoding(codec=codec)
    path = write(tmp_path / f"a{suffix}", encoding)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        names = {"h265": "hevc", "av1": "dav1d"}
        assert names.get(codec, codec) in stream.codec_context.name
        assert codec == "ffv1" or next(container.decode(video=0)).colorspace == 1  # BT.709
    info = probe_video(path)
    assert (info.num_frames, info.frame_rate, info.width) == (9, 24, 64)
    assert read_tags(path)["ltx2rt_record"] == '{"a": "né"}'
    frames = read_video_frames(path)
    for patch, colour in enumerate(COLOURS):
        row, column = 16 + 32 * (patch // 2), 16 + 32 * (patch % 2)
        # flat colours: two steps of rounding, and some noise of the lossy codecs
        assert np.abs(frames[:, row, column] - 255 * colour).max() <= 8
    sound, rate = read_audio(path)
    assert rate == (48000 if suffix == ".webm" else RATE)
    if codec == "ffv1":
        np.testing.assert_array_equal(frames, to_uint8(patches(9))[0])
    assert abs(sound.shape[1] / rate - 9 / 24) < 0.03
    crossings = np.flatnonzero(np.diff(np.sign(sound[0, 1000 : rate // 4 + 1000])))
    assert abs(len(crossings) / 2 / 0.25 - 440) < 12
    assert write(tmp_path / f"b{suffix}", encoding).read_bytes() == path.read_bytes()


def test_quality_and_preset_reach_the_encoder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0).random((5, 64, 64, 3), np.float32)

    def size(name: str, **choice: object) -> int:
        path = tmp_path / name
        with VideoWriter(path, 64, 64, 24, encoding=VideoEncoding(**choice)) as writer:
            writer.write(rng)
        return path.stat().st_size

    assert size("a.mp4", quality=10) > 2 * size("b.mp4", quality=40)
    assert size("c.mp4", codec="h265", quality=10) > 2 * size("d.mp4", codec="h265", quality=45)
    assert size("e.mov", codec="prores", preset="hq") > 1.5 * size(
        "f.mov", codec="prores", preset="proxy"
    )
    assert size("g.mp4", preset="ultrafast") != size("h.mp4", preset="slow")


def test_ten_bit_planes_against_the_formula() -> None:
    frame = np.array([[(1, 1, 1), (0, 0, 0)], [(1, 0, 0), (1, 0, 0)]], np.float32)
    (y, u, v), bad = rgb_to_yuv422p10(frame)
    assert bad == 0
    assert y.tolist() == [[940, 64], [round(64 + 876 * 0.2126)] * 2]
    assert u.tolist() == [[512], [round(512 - 896 * 0.1146)]]
    assert v.tolist() == [[512], [round(512 + 896 * 0.5)]]


@pytest.mark.parametrize(
    ("suffix", "choice", "parts"),
    [
        (".mp4", {"codec": "prores"}, ["codec=prores does not go into a .mp4", ".mov, .mkv"]),
        (".webm", {"codec": "h264"}, ["which holds vp9, av1"]),
        (".mp4", {"quality": 52}, ["quality=52 of h264 is not in [0, 51]", "default 19"]),
        (".mp4", {"preset": "quick"}, ["preset=quick of h264", "veryslow"]),
        (".mov", {"codec": "prores", "quality": 3}, ["takes its quality from preset"]),
        (".webm", {"encoder": "nvenc"}, ["encoder=nvenc does not encode vp9", "h264, h265, av1"]),
        (".mp4", {"quality": 99, "preset": "x"}, ["quality=99", "preset=x"]),
    ],
)
def test_wrong_choices(tmp_path: Path, suffix: str, choice: dict, parts: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        VideoWriter(tmp_path / f"a{suffix}", 64, 64, 24, encoding=VideoEncoding(**choice))
    for part in parts:
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_nvenc_without_a_gpu_is_refused_before_work(tmp_path: Path) -> None:
    encoding = VideoEncoding(encoder="nvenc")
    try:
        encoding.check(tmp_path / "a.mp4")
    except UnsupportedError as error:
        assert "h264_nvenc does not start on this machine" in str(error)  # noqa: PT017
    else:  # there is one
        write(tmp_path / "a.mp4", encoding)
        assert probe_video(tmp_path / "a.mp4").num_frames == 9


def test_defaults_of_the_table_are_allowed() -> None:
    for row in ENCODERS.values():
        assert row.presets[2] in row.presets[1]
        assert row.quality is None or row.quality[1] <= row.quality[3] <= row.quality[2]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    frames = np.stack([np.roll(patches(1)[0], 4 * i, 1) for i in range(10)])
    text = '{"a": "' + 2000 * "né" + '"}'
    write_animation(path, iter([frames[:4], frames[4:]]), 10, Fraction(24), text)
    with Image.open(path) as image:
        assert image.n_frames == 10
        assert animation_text(image.info) == text
        durations = []
        for index in range(10):
            image.seek(index)
            shown = np.asarray(image.convert("RGB"))
            assert np.abs(shown - 255 * frames[index]).mean() < 6
            durations.append(image.info["duration"])
    assert abs(sum(durations) - 10 / 24 * 1000) <= 5


def test_frames_of_an_animation_do_not_drift() -> None:
    for rate, unit in ((Fraction(24), 10), (Fraction(30000, 1001), 1), (Fraction(50), 10)):
        times = frame_times_ms(500, rate, unit)
        assert all(t % unit == 0 for t in times)
        assert abs(sum(times) - 500_000 / rate) <= unit


@pytest.mark.parametrize(
    ("name", "rate", "quality", "part"),
    [
        ("a.gif", 60, None, "at most 50 frames per second"),
        ("a.gif", 24, 5, "no quality to choose"),
        ("a.webp", 24, 101, "not in [0, 100]"),
    ],
)
def test_wrong_animations(tmp_path: Path, name: str, rate: int, quality: int, part: str) -> None:
    with pytest.raises(OptionError) as error:
        write_animation(tmp_path / name, iter(()), 9, Fraction(rate), "", quality)
    assert part in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_channels_of_kept_sound_stay(tmp_path: Path, name: str) -> None:
    wave = np.stack(
        [np.sin(np.arange(48000) * (2 * np.pi * f / 48000)) for f in range(200, 800, 100)]
    )
    sound = (0.3 * wave).astype(np.float32), 48000
    with VideoWriter(tmp_path / name, 64, 64, 24, sound) as writer:
        writer.write(patches(24))
    read, rate = read_audio(tmp_path / name)
    assert (rate, len(read)) == (48000, 6)
    for index in (0, 1, 2, 4, 5):  # index 3 is the low-frequency channel, which codecs cut
        spectrum = np.abs(np.fft.rfft(read[index, : 48000 // 2]))
        assert abs(int(spectrum.argmax()) * 2 - (200 + 100 * index)) <= 4
    write_audio(tmp_path / "a.wav", *sound)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], sound[0], atol=1e-4)
    with pytest.raises(OptionError, match=r"cannot hold the 5\.1 sound"):
        write_audio(tmp_path / "a.mp3", *sound)


def test_ten_bits_may_come_converted(tmp_path: Path) -> None:
    """The same file, byte for byte; and no other file takes them."""
    frames = np.random.default_rng(0).random((3, 64, 96, 3), np.float32)
    packed, bad = pack_yuv422p10(frames)
    assert bad == 0
    assert packed.shape[1:] == frame_shape("yuv422p10", 64, 96)
    prores = VideoEncoding(codec="prores")
    for name, chunk in (("a.mov", frames), ("b.mov", packed)):
        with VideoWriter(tmp_path / name, 96, 64, 24, encoding=prores) as writer:
            assert writer.packed_form == "yuv422p10"
            writer.write(chunk)
    assert (tmp_path / "a.mov").read_bytes() == (tmp_path / "b.mov").read_bytes()
    for encoding, chunk in ((prores, packed[:, :-2]), (None, packed)):
        with (
            pytest.raises(ShapeError, match=r"expected \[frames, 128, 96\] uint16"),
            VideoWriter(tmp_path / "c.mov", 96, 64, 24, encoding=encoding) as writer,
        ):
            writer.write(chunk)


@pytest.mark.parametrize("form", ["rgb", "i420", "yuv422p10"])
def test_a_part_of_packed_frames(form: str) -> None:
    """As of the picture that they were made of."""
    frames = np.random.default_rng(1).random((2, 16, 24, 3), np.float32)
    pack = {"rgb": to_uint8, "i420": rgb_to_i420, "yuv422p10": pack_yuv422p10}[form]
    want = pack(frames[:, 4:14, 6:20])[0]
    np.testing.assert_array_equal(cropped(pack(frames)[0], 10, 14, 4, 6), want)
    corner = pack(frames[:, :10, :14])[0]
    np.testing.assert_array_equal(cropped(pack(frames)[0], 10, 14), corner)
