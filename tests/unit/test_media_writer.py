"""Video, sound and frame files: contents read back with PyAV, and nothing left after a failure."""

from __future__ import annotations

import contextlib
import errno
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ltx2rt.errors import MediaError, OptionError, ShapeError
from ltx2rt.media.audio import to_int16, write_audio
from ltx2rt.media.color import rgb_to_i420, to_uint8
from ltx2rt.media.files import OutputFile, check_output_path
from ltx2rt.media.reader import read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.media.writer import VideoWriter, exact_frame_rate, write_frames

RATE = 48000
AAC_FRAME = 1024  # samples; the last one is padded, and a fragmented file also counts the first
COLOURS = [(0.9, 0.1, 0.2), (0.1, 0.8, 0.3), (0.2, 0.2, 0.9), (0.5, 0.5, 0.5)]


def patches(num_frames: int, size: int = 32) -> np.ndarray:
    """Four flat patches, [f, 2 * size, 2 * size, 3]."""
    grid = np.array(COLOURS, np.float32).reshape(1, 2, 2, 3)
    return np.repeat(grid.repeat(size, 1).repeat(size, 2), num_frames, 0)


def tone(samples: int) -> np.ndarray:
    wave = 0.5 * np.sin(np.arange(samples) * (2 * np.pi * 440 / RATE))
    return np.stack([wave, -wave]).astype(np.float32)


def write(path: Path, num_frames: int = 10, rate: float = 24, audio_samples=RATE, **options):
    audio = (tone(audio_samples), RATE) if audio_samples else None
    frames = patches(num_frames)
    with VideoWriter(path, 64, 64, rate, audio, **options) as writer:
        for start in range(0, num_frames, 4):
            writer.write(frames[start : start + 4])
    return path


def decoded_rgb(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [
            f.to_ndarray(format="rgb24", src_colorspace="ITU709", dst_colorspace="ITU709")
            for f in container.decode(video=0)
        ]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "fragmented.mp4"])
@pytest.mark.parametrize("rate", [24, 29.97, 12.5])
def test_frames_and_duration(tmp_path, name, rate):
    # sound shorter than the picture at 12.5 fps, longer at the others: padded and cut
    path = write(tmp_path / name, 17, rate, RATE, fragmented="fragmented" in name)
    exact = exact_frame_rate(rate)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.average_rate == exact
        assert audio.codec_context.sample_rate == RATE
        assert audio.codec_context.channels == 2
        if not name.endswith("mkv"):  # matroska stores no stream durations
            assert video.duration * video.time_base == 17 / exact
            assert abs(audio.duration * audio.time_base - 17 / exact) <= Fraction(AAC_FRAME, RATE)
        times = [f.pts * f.time_base for f in container.decode(video=0)]
    # matroska counts whole milliseconds
    assert [abs(t - i / exact) <= Fraction(1, 1000) for i, t in enumerate(times)] == [True] * 17
    if not name.endswith("mkv"):
        assert times == [i / exact for i in range(17)]
    wanted = round(17 / exact * RATE)
    got = read_audio(path)[0].shape[1]
    assert wanted <= got < wanted + AAC_FRAME


def test_plain_mp4_durations_agree_to_a_millisecond(tmp_path):
    path = write(tmp_path / "a.mp4", 10, 23.976)
    with av.open(str(path)) as container:
        lengths = [float(s.duration * s.time_base) for s in container.streams]
    assert abs(lengths[0] - lengths[1]) < 1e-3  # the edit list counts milliseconds


def test_single_frame(tmp_path):
    path = write(tmp_path / "a.mp4", 1)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(1, 24)
        assert stream.average_rate == 24


def test_sound_is_in_step_with_the_picture(tmp_path):
    path = write(tmp_path / "a.mp4", 24)
    got, rate = read_audio(path)
    want = tone(RATE)
    assert rate == RATE
    errors = {
        shift: np.square(got[:, 4096 + shift : 40000 + shift] - want[:, 4096:40000]).mean()
        for shift in range(-30, 31)
    }
    assert min(errors, key=errors.get) == 0  # the priming samples of AAC are hidden


def test_missing_sound_is_silence_and_kept_sound_is_kept(tmp_path):
    padded, _ = read_audio(write(tmp_path / "a.mp4", 24, audio_samples=RATE // 4))
    assert np.abs(padded[:, RATE // 4 + 2 * AAC_FRAME :]).max() < 1e-3
    kept, _ = read_audio(write(tmp_path / "b.mp4", 6, audio_samples=RATE, fit_audio=False))
    assert RATE <= kept.shape[1] < RATE + AAC_FRAME
    short, _ = read_audio(write(tmp_path / "c.mp4", 24, audio_samples=9000, fit_audio=False))
    assert 9000 <= short.shape[1] < 9000 + AAC_FRAME


def test_colours_and_tags(tmp_path):
    path = write(tmp_path / "a.mp4", 3, audio_samples=0)
    with av.open(str(path)) as container:
        assert not container.streams.audio
        frame = next(container.decode(video=0))
        tags = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        planes = frame.to_ndarray()
    assert tags == (1, 1, 1, 1)
    # flat colours survive CRF 19: what was encoded comes back (1: x264 may round)
    wanted = rgb_to_i420(patches(1))[0][0]
    assert np.abs(planes.astype(int) - wanted.astype(int)).max() <= 1
    # Truncating Y, U and V loses up to one step each: up to 1.16 + 2.11 = 3.3 levels of blue, plus
    # 0.5 for the 8-bit result. Read as BT.601 the red patch would be 20 levels off.
    for image in (*decoded_rgb(path), *read_video_frames(path)):
        for index, colour in enumerate(COLOURS):
            row, column = divmod(index, 2)
            patch = image[row * 32 + 8 : row * 32 + 24, column * 32 + 8 : column * 32 + 24]
            assert np.abs(patch - np.array(colour) * 255).max() <= 4
    grey = read_video_frames(path)[0, 48, 48]
    assert np.abs(grey - 127.5).max() <= 2
    assert np.ptp(grey) == 0


def test_uint8_and_i420_chunks_give_the_same_file(tmp_path):
    pixels = to_uint8(patches(3))[0]
    with VideoWriter(tmp_path / "a.mp4", 64, 64, 24) as writer:
        writer.write(pixels)
    with VideoWriter(tmp_path / "b.mp4", 64, 64, 24) as writer:
        writer.write_i420(rgb_to_i420(pixels)[0])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_the_same_frames_give_the_same_file(tmp_path):
    """x264 with AVX-512 gives a new file nearly every time if 128 does not divide the width."""
    texture = np.kron(np.random.default_rng(0).random((30, 50, 3), np.float32), np.ones((8, 8, 1)))
    frames = np.stack([texture[i : i + 160, 3 * i : 3 * i + 224] for i in range(24)])
    for number in range(6):
        with VideoWriter(tmp_path / f"{number}.mp4", 224, 160, 24) as writer:
            writer.write(frames)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_metadata(tmp_path, name):
    tags = {"title": "A cat", "comment": '{"seed": 3}', "prompt": "ein Kätzchen = ;#"}
    for number, wanted in enumerate((tags, {"title": "A cat"}, {})):
        path = write(tmp_path / f"{number}{name}", 2, metadata=wanted)
        with av.open(str(path)) as container:
            got = container.metadata
        assert {k: got[k] for k in wanted} == wanted


def test_moov_is_in_front(tmp_path):
    data = write(tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_fragmented_file_plays_while_it_grows(tmp_path):
    path = tmp_path / "a.mp4"
    rng = np.random.default_rng(0)
    with VideoWriter(path, 64, 64, 8, (tone(10 * RATE), RATE), fragmented=True) as writer:
        for _ in range(80):
            writer.write(rng.random((1, 64, 64, 3), np.float32))
        with av.open(str(path)) as container:
            growing = sum(1 for _ in container.decode(video=0))
    assert 8 <= growing < 80
    data = path.read_bytes()
    assert data.count(b"moof") >= 9
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])
    frames = 0
    with av.open(str(cut)) as container:
        decoder = container.decode(video=0)
        with contextlib.suppress(av.FFmpegError, StopIteration):
            while next(decoder):
                frames += 1
    assert 24 <= frames <= 56


@given(st.integers(1, 240), st.booleans())
def test_broadcast_rates_are_recovered(number, spelled_with_three_digits):
    exact = Fraction(number * 1000, 1001)
    decimal = round(float(exact), 3) if spelled_with_three_digits else float(exact)
    # three digits recover the rate from about 20 fps on; slower ones keep what was written
    if not spelled_with_three_digits or abs(decimal - exact) <= exact * Fraction(2, 10**6):
        assert exact_frame_rate(decimal) == exact
    assert exact_frame_rate(number) == number


@pytest.mark.parametrize(
    ("given_rate", "exact"),
    [
        (23.976, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (25.0, Fraction(25)),
        (12.5, Fraction(25, 2)),
        (23.98, Fraction(1199, 50)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
    ],
)
def test_frame_rate(given_rate, exact):
    assert exact_frame_rate(given_rate) == exact


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), 1001, 1e-9])
def test_bad_frame_rate(bad):
    with pytest.raises(OptionError, match="frame_rate"):
        exact_frame_rate(bad)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (1, 4, 6, 3), elements=st.floats(0, 1, width=32)))
def test_i420_against_the_formula(frames):
    got = rgb_to_i420(frames)[0][0].astype(int)
    assert got.shape == (6, 6)
    rgb = frames[0].astype(np.float64)

    def check(value: int, exact: float) -> None:
        # truncation of a float32 sum: either side of an integer may be hit within 1e-4
        assert np.floor(exact - 1e-4) <= value <= np.floor(exact + 1e-4)

    for y in range(4):
        for x in range(6):
            r, g, b = rgb[y, x]
            check(got[y, x], (0.2126 * r + 0.7152 * g + 0.0722 * b) * 219 + 16)
    u, v = got[4:].reshape(2, 2, 3)
    for y in range(2):
        for x in range(3):
            r, g, b = rgb[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(4, 3).mean(0)
            check(u[y, x], (-0.1146 * r - 0.3854 * g + 0.5 * b) * 224 + 128)
            check(v[y, x], (0.5 * r - 0.4542 * g - 0.0458 * b) * 224 + 128)


def test_values_outside_are_clamped_and_nan_is_black(tmp_path):
    frames = np.zeros((1, 2, 2, 3), np.float32)
    frames[0, 0, 0] = np.nan
    frames[0, 0, 1] = [np.inf, 7, 1.5]
    frames[0, 1, 0] = [-np.inf, -3, 0]
    planes, nan_values = rgb_to_i420(frames)
    assert nan_values == 3
    assert planes[0, :2].tolist() == [[16, 235], [16, 16]]
    with pytest.warns(UserWarning, match="6 colour values .* NaN"):
        with VideoWriter(tmp_path / "a.mp4", 2, 2, 24) as writer:
            writer.write(np.concatenate([frames, frames]))
    sound = np.array([[np.nan, 2, np.inf], [np.nan, -2, 0.5]])
    samples, nan_values = to_int16(sound)
    assert samples.tolist() == [[0, 0], [32767, -32767], [32767, 16383]]
    assert nan_values == 2
    with pytest.warns(UserWarning, match="2 audio samples are NaN"):
        write_audio(tmp_path / "a.wav", sound, 48000)


@pytest.mark.parametrize("size", [(63, 64), (64, 63), (0, 64)])
def test_odd_sizes(tmp_path, size):
    with pytest.raises(ShapeError, match="even"):
        VideoWriter(tmp_path / "a.mp4", *size, 24)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "chunk",
    [
        np.zeros((1, 64, 32, 3), np.float32),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((1, 3, 64, 64), np.float32),
        np.zeros((1, 64, 64, 3), np.int64),
    ],
)
def test_wrong_chunks(tmp_path, chunk):
    with pytest.raises(ShapeError), VideoWriter(tmp_path / "a.mp4", 64, 64, 24) as writer:
        writer.write(chunk)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ((np.zeros((1, 100), np.float32), RATE), "stereo"),
        ((np.zeros((2, 0), np.float32), RATE), "at least one sample"),
        ((np.zeros((2, 9), np.int16), RATE), "float32"),
        ((np.zeros((2, 9), np.float32), 0), "positive"),
        ((np.zeros((2, 9), np.float32), 12345), "44100"),
    ],
)
def test_wrong_audio(tmp_path, audio, message):
    with pytest.raises((ShapeError, OptionError), match=message):
        VideoWriter(tmp_path / "a.mp4", 64, 64, 24, audio)


def test_output_paths(tmp_path, monkeypatch):
    for name, kind in (
        ("a.MP4", "video"),
        ("a.mkv", "video"),
        ("a.flac", "audio"),
        ("a", "frames"),
    ):
        assert check_output_path(tmp_path / name) == kind
    with pytest.raises(MediaError, match=r"'\.avi'.*\.mp4, \.mov, \.mkv.*\.wav, \.flac.*directory"):
        check_output_path(tmp_path / "a.avi")
    with pytest.raises(MediaError, match=r"allowed: \.wav, \.flac, \.mp3, \.m4a for audio\.$"):
        check_output_path(tmp_path / "a.mp4", "audio")
    with pytest.raises(MediaError, match="does not exist"):
        check_output_path(tmp_path / "missing" / "a.mp4")
    (tmp_path / "d.mp4").mkdir()
    with pytest.raises(MediaError, match="not a regular file"):
        check_output_path(tmp_path / "d.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.mp4"]

    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("ltx2rt.media.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(MediaError, match="not writable"):
        VideoWriter(tmp_path / "a.mp4", 64, 64, 24)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any directory")
def test_unwritable_directory(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MediaError, match="not writable"):
        check_output_path(tmp_path / "a.mp4")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fragmented", [False, True])
def test_nothing_is_left_after_an_exception(tmp_path, error, fragmented):
    path = tmp_path / "a.mp4"
    if not fragmented:
        path.write_bytes(b"old")

    def interrupted() -> None:
        with VideoWriter(path, 64, 64, 24, (tone(RATE), RATE), fragmented=fragmented) as writer:
            writer.write(patches(30))
            raise error

    with pytest.raises(error):
        interrupted()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if fragmented else [b"old"])


def test_no_frames(tmp_path):
    with pytest.raises(MediaError, match="no frames"):
        VideoWriter(tmp_path / "a.mp4", 64, 64, 24).__enter__().__exit__(None, None, None)
    with pytest.raises(MediaError, match="no frames"):
        write_frames(tmp_path / "frames", [])
    assert not list(tmp_path.iterdir())


def test_existing_file_and_its_link_target_are_replaced(tmp_path):
    real, link = tmp_path / "real.mp4", tmp_path / "link.mp4"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write(link, 2)
    assert link.is_symlink()
    assert len(decoded_rgb(real)) == 2


class Failing:
    """A file on which writing fails after `room` bytes."""

    def __init__(self, file, room: int, error: BaseException) -> None:
        self.file, self.room, self.error = file, room, error

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise self.error
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture
def failing_disk(monkeypatch):
    def install(room: int, error: BaseException) -> None:
        original = OutputFile.__init__

        def patched(self, *args, **options):
            original(self, *args, **options)
            self._file = Failing(self._file, room, error)

        monkeypatch.setattr(OutputFile, "__init__", patched)

    return install


NOISE = np.random.default_rng(0).random((60, 64, 64, 3), np.float32)


@pytest.mark.parametrize("fragmented", [False, True])
@pytest.mark.parametrize("room", [0, 3000, 60_000, 150_000])
def test_full_disk(tmp_path, failing_disk, room, fragmented):
    failing_disk(room, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    audio = (tone(RATE), RATE)
    with (
        pytest.raises(MediaError, match=r"the disk is full: .*a\.mp4.*removed"),
        VideoWriter(tmp_path / "a.mp4", 64, 64, 24, audio, fragmented=fragmented) as writer,
    ):
        writer.write(NOISE)
    assert not list(tmp_path.iterdir())


def test_full_disk_in_the_second_pass(tmp_path, failing_disk):
    size = write(tmp_path / "a.mp4").stat().st_size
    (tmp_path / "a.mp4").unlink()
    failing_disk(size + 10, OSError(errno.ENOSPC, "full"))  # faststart writes everything again
    with pytest.raises(MediaError, match="disk is full"):
        write(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_interrupt_inside_libav(tmp_path, failing_disk):
    failing_disk(1000, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.mp4", 60)
    assert not list(tmp_path.iterdir())


def test_other_write_errors_name_the_file(tmp_path, failing_disk):
    failing_disk(1000, OSError(errno.EIO, os.strerror(errno.EIO)))
    with pytest.raises(MediaError, match=r"cannot write '.*a\.wav': Input/output error"):
        write_audio(tmp_path / "a.wav", tone(5000), RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_sound_round_trip(tmp_path, suffix, rate):
    path = tmp_path / f"a{suffix}"
    wave = np.random.default_rng(1).uniform(-1.2, 1.2, (2, 70_001)).astype(np.float32)
    write_audio(path, wave, rate, {"title": "T", "comment": "seed 3"})
    got, got_rate = read_audio(path)
    assert got_rate == rate
    np.testing.assert_array_equal(got * 32768, np.trunc(np.clip(wave, -1, 1) * np.float32(32767)))
    with av.open(str(path)) as container:
        assert (
            container.streams[0].codec_context.name
            == {
                ".wav": "pcm_s16le",
                ".flac": "flac",
            }[suffix]
        )
        assert {k.lower(): v for k, v in container.metadata.items()}["comment"] == "seed 3"


def test_frames(tmp_path):
    from PIL import Image

    chunks = [np.full((2, 4, 6, 3), 0.5, np.float32), np.full((1, 4, 6, 3), 7, np.uint8)]
    assert write_frames(tmp_path / "frames", chunks) == 3
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert names == ["frame_00000.png", "frame_00001.png", "frame_00002.png"]
    values = [np.array(Image.open(tmp_path / "frames" / n)) for n in names]
    assert [v.shape for v in values] == [(4, 6, 3)] * 3
    assert [set(v.ravel().tolist()) for v in values] == [{128}, {128}, {7}]
    with pytest.raises(MediaError, match="not empty"):
        write_frames(tmp_path / "frames", chunks)


def test_frames_of_a_failing_decoder_leave_nothing(tmp_path):
    def chunks():
        yield np.zeros((1, 4, 4, 3), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_frames(tmp_path / "frames", chunks())
    assert not list(tmp_path.iterdir())
