"""One clock for picture and sound: files that are stored upside down, late, or unevenly."""

from __future__ import annotations

import tracemalloc
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ltx2rt.config import NeighbourClip
from ltx2rt.errors import MediaError
from ltx2rt.media.clock import resampled
from ltx2rt.media.reader import count_frames, iterate_video_frames, probe_video, read_video_frames
from ltx2rt.media.sound import probe_audio, read_audio, read_padded_audio
from ltx2rt.media.writer import VideoWriter
from ltx2rt.pipelines.inputs import read_sound
from ltx2rt.pipelines.neighbours import Part, shared_part
from tests.unit.media_clips import (
    HEIGHT,
    RATE,
    WIDTH,
    beep,
    beep_at,
    hide_first,
    numbers,
    write_clip,
)

FRAMES = 33
LONG = FRAMES / 24


@pytest.mark.parametrize(
    ("degrees", "mirrored", "flipped", "corner"),
    [
        (0, False, False, (0, 0)),
        (90, False, False, None),
        (180, False, False, (1, 1)),
        (270, False, False, None),
        (0, True, False, (0, 1)),
        (0, False, True, (1, 0)),
        (90, True, False, None),
    ],
)
def test_frames_are_upright(
    tmp_path: Path, degrees: int, mirrored: bool, flipped: bool, corner: tuple[int, int] | None
) -> None:
    path = write_clip(tmp_path / "a.mp4", range(9), rotation=(degrees, mirrored, flipped))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        coded, rotation = frame.to_ndarray(format="rgb24"), frame.rotation
    info, frames = probe_video(path), read_video_frames(path)
    turned = degrees % 180 != 0
    assert (info.width, info.height) == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    assert frames.shape == (9, info.height, info.width, 3)
    if not mirrored and not flipped:
        np.testing.assert_array_equal(frames[0], np.rot90(coded, rotation // 90))
    corners = frames[0, [4, -4]][:, [4, -4], 0] > 200
    assert corners.sum() == 1
    if corner is not None:
        assert corners[corner]


def test_a_mirrored_quarter_turn_is_no_plain_one(tmp_path: Path) -> None:
    corners = set()
    for name, rotation in {"a": (90, False, False), "b": (90, True, False)}.items():
        frames = read_video_frames(write_clip(tmp_path / f"{name}.mp4", [0], rotation=rotation))
        corners.add(int(np.argmax(frames[0, [4, -4]][:, [4, -4], 0])))
    assert len(corners) == 2


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "src.mp4", range(FRAMES), sound=beep(LONG, 1.0))
    path = hide_first(source, tmp_path / "trimmed.mp4", 12 / 24)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == FRAMES  # what the header says
    info = probe_video(path)
    assert (info.num_frames, info.duration_s, info.frame_rate) == (21, 0.875, 24)
    assert numbers(read_video_frames(path)) == list(range(12, 33))
    assert abs(beep_at(read_audio(path)[0]) - RATE // 2) < 480


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_late_sound_stays_in_place(tmp_path: Path, suffix: str) -> None:
    path = write_clip(
        tmp_path / f"late.{suffix}", range(FRAMES), sound=beep(0.875, 0.5), sound_from_s=0.5
    )
    wave, rate = read_audio(path, 0.0, LONG)
    assert (rate, wave.shape) == (RATE, (1, round(LONG * RATE)))
    assert abs(beep_at(wave) - RATE) < 480
    assert not wave[:, : round(0.45 * RATE)].any()
    gap, _ = read_audio(path, 0.1, 0.2)  # all of it before the sound
    assert gap.shape == (1, round(0.2 * RATE))
    assert not gap.any()
    assert abs(beep_at(read_audio(path, 0.25)[0]) - round(0.75 * RATE)) < 480
    with pytest.raises(MediaError, match="no sound from"):
        read_audio(path, 3.0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_sound_before_a_late_picture_is_cut(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"p.{suffix}", range(12, 12 + FRAMES), sound=beep(1.8, 1.0))
    assert probe_video(path).num_frames == FRAMES
    assert abs(beep_at(read_audio(path)[0]) - RATE // 2) < 480


def test_a_container_that_does_not_begin_at_0(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.ts", range(36, 36 + FRAMES), sound=beep(LONG, 0.75), sound_from_s=1.5
    )
    with av.open(str(path)) as container:
        assert container.start_time > 0.5 * av.time_base
    info = probe_video(path)
    assert (info.num_frames, info.frame_rate) == (FRAMES, 24)
    assert numbers(read_video_frames(path)) == list(range(FRAMES))
    wave, _ = read_audio(path, 0.0, 1.0)
    assert wave.shape == (1, RATE)
    assert abs(beep_at(wave) - round(0.75 * RATE)) < 480
    half, _ = read_audio(path, 0.5, 0.5)
    assert half.shape == (1, RATE // 2)
    assert abs(beep_at(half) - RATE // 4) < 480


def test_a_varying_rate_is_read_by_its_time_stamps(tmp_path: Path) -> None:
    stamps = [*range(17), *range(18, 50, 2)]
    path = write_clip(tmp_path / "vfr.mp4", stamps, sound=beep(2.04, 1.0))
    with pytest.warns(UserWarning, match=r"varies \(16 on average, 0\.0417 to 0\.0833 s"):
        info = probe_video(path)
    assert info.frame_rate == 24
    assert abs(info.num_frames - 50) <= 1
    seen = numbers(read_video_frames(path))
    assert seen[:18] == [*range(17), 16]
    assert seen[24] == 20  # shown at 1 s, as the beep is heard
    assert abs(beep_at(read_audio(path)[0]) - RATE) < 480


def test_time_stamps_in_milliseconds_are_no_varying_rate(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = probe_video(write_clip(tmp_path / "a.mkv", range(FRAMES)))
    assert (info.num_frames, info.frame_rate) == (FRAMES, 24)


def test_another_rate_keeps_the_time(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", range(24))
    half = np.stack(list(iterate_video_frames(path, None, 12)))
    assert len(half) == count_frames(path, 12) == 12
    assert all(abs(seen - 2 * i) <= 1 for i, seen in enumerate(numbers(half)))
    double = np.stack(list(iterate_video_frames(path, 10, 48.0)))
    assert numbers(double) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert numbers(np.stack(list(iterate_video_frames(path, None, 24.0)))) == list(range(24))


def test_every_slot_of_a_rate_shows_something() -> None:
    times = [Fraction(n, 10) for n in (0, 1, 2, 7)]
    assert resampled(times, Fraction(8, 10), Fraction(10)) == [0, 1, 2, 2, 2, 2, 2, 3]
    assert resampled(times, Fraction(8, 10), Fraction(5)) == [0, 2, 2, 2]
    assert resampled(times[:1], Fraction(1, 100), Fraction(24)) == [0]


@pytest.mark.parametrize(("transfer", "name"), [(18, "arib-std-b67"), (16, "smpte2084")])
def test_hdr_video_is_converted_and_named(tmp_path: Path, transfer: int, name: str) -> None:
    def tagged(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, transfer, 9

    options = {
        "x265-params": f"log-level=error:colorprim=bt2020:transfer={name}:colormatrix=bt2020nc"
    }
    path = write_clip(
        tmp_path / "hdr.mov", range(9), codec="libx265", pix_fmt="yuv420p10le",
        prepare=tagged, options=options,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=name):
        frames = read_video_frames(path)
    with av.open(str(path)) as container:
        raw = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(frames[0].astype(int) - raw)[64, 96].max() > 3  # not the codes themselves


def test_pixels_that_are_not_square_are_named(tmp_path: Path) -> None:
    def wide(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write_clip(tmp_path / "wide.mkv", range(3), prepare=wide)
    with pytest.warns(UserWarning, match=r"not square \(4:3\)"):
        probe_video(path)


def test_sound_in_64_bits(tmp_path: Path) -> None:
    path = tmp_path / "s64.wav"
    wave = beep(1.4, 1.0) / 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s64le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = RATE
        for part in av.AudioResampler(format="s64", layout="mono", rate=RATE).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    got, rate = read_audio(path)
    assert (rate, probe_audio(path).layout) == (RATE, "mono")
    np.testing.assert_allclose(got, wave, atol=1e-7)


def test_six_channels_are_mixed_down(tmp_path: Path) -> None:
    path = tmp_path / "six.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=RATE, layout="5.1")
        samples = np.zeros((1, 600), np.float32)
        samples[0, 2::6] = 0.25  # the centre
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="5.1")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert read_audio(path)[0].shape == (6, 100)
    with pytest.warns(UserWarning, match=r"6 channels \(5\.1\)"):
        wave, _ = read_sound(path)
    np.testing.assert_allclose(wave, np.full((2, 100), 0.25 * 0.5**0.5), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mkv", "mpeg2video", {"flags": "+ildct+ilme"}),
        ("a.mp4", "libx264", {"x264-params": "tff=1:asm=SSE4.2"}),
    ],
)
def test_interlaced_video_is_named(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options, width=64, height=64)
        stream.pix_fmt = "yuv420p"
        for number in range(5):
            grey = np.full((96, 64), 60 + number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.warns(UserWarning, match="is interlaced: its frames are read with both fields"):
        assert probe_video(tmp_path / name).num_frames == 5


def test_fragments_are_read_to_their_end_and_in_step(tmp_path: Path) -> None:
    """A fragmented file has no table of its frames; its sound is where it was."""
    path, rate = tmp_path / "a.mp4", 48000
    wave = np.zeros((2, rate * 2), np.float32)
    wave[:, rate : rate + 480] = 0.8
    frames = np.repeat(np.linspace(0, 1, 48, dtype=np.float32), 64 * 64 * 3).reshape(48, 64, 64, 3)
    with VideoWriter(path, 64, 64, 24, (wave, rate), fragmented=True) as writer:
        writer.write(frames)
    info = probe_video(path)
    assert (info.num_frames, info.frame_rate) == (48, 24)
    means = read_video_frames(path).mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(means, np.linspace(0, 1, 48), atol=0.02)
    loud = np.flatnonzero(np.abs(read_audio(path)[0][0]) > 0.4)
    assert abs(int(loud[0]) - rate) < 64


def test_the_end_of_a_long_clip_takes_no_more_memory(tmp_path: Path) -> None:
    """The last frames and their sound are what they are in the whole; the rest is not kept."""

    def end_of(count: int) -> tuple[Part, int]:
        path = write_clip(tmp_path / f"{count}.mp4", range(count), sound=beep(count / 24, 0.2))
        probe_video(path)
        tracemalloc.start()
        part = shared_part(NeighbourClip(path=path, frames=9), 24.0, is_end=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(part.frames, read_video_frames(path)[-9:])
        assert part.sound is not None
        wave, rate = read_audio(path)
        start = round((count - 9) / 24 * rate)
        want = wave[:, start : start + round(9 / 24 * rate)]
        np.testing.assert_array_equal(part.sound[0], np.repeat(want, 2, axis=0))
        return part, peak

    (_, short), (_, long) = end_of(48), end_of(720)
    assert long < 1.3 * short, (short, long)


def test_sound_that_has_ended_is_silence(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", range(48), sound=beep(1.0, 0.5))
    wave, rate = read_padded_audio(path, 0.75, 1.0)
    assert wave.shape == (1, rate)
    assert not wave[:, round(0.35 * rate) :].any()
    np.testing.assert_array_equal(wave[:, : rate // 8], read_audio(path, 0.75, 0.125)[0])
    silent, _ = read_padded_audio(path, 1.5, 0.25)
    assert silent.shape == (1, rate // 4)
    assert not silent.any()
