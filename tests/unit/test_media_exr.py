"""EXR files and HDR colour: what is written is what is read, and damaged files are one sentence."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ltx2rt.errors import MediaError, UnsupportedError
from ltx2rt.media.exr import ExrFolder, exr_files, exr_size, is_exr, iterate_exr_frames, read_exr
from ltx2rt.media.hdr import (
    HDR_FORMATS,
    TRANSFERS,
    HdrFormat,
    hlg_planes,
    hlg_signal,
    srgb_signal,
)

OpenEXR = pytest.importorskip("OpenEXR")

LIGHT = arrays.arrays(
    np.float32, (2, 3, 3), elements=st.floats(0, 40, width=32, allow_subnormal=False)
)


def write(path: Path, channels: dict[str, np.ndarray]) -> Path:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))
    return path


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rgb = np.random.default_rng(0).random((20, 30, 3), np.float32).astype(np.float16)
    return write(tmp_path_factory.mktemp("exr") / "still.exr", {"RGB": rgb})


def test_frames_written_are_frames_read(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).uniform(-1, 100, (3, 6, 8, 3)).astype(np.float32)
    frames[0, 0, 0] = [np.nan, 1e6, -1e6]
    folder = tmp_path / "clip_exr"
    with ExrFolder(folder, HDR_FORMATS["ACESCG"].exr_attributes) as writer:
        writer.write(frames[:2])
        writer.write(frames[2:])
    assert [p.name for p in exr_files(folder)] == [f"frame_0000{i}.exr" for i in range(3)]
    assert is_exr(folder)
    assert list(tmp_path.iterdir()) == [folder]
    frames[0, 0, 0] = [0, 65504, -65504]
    want = frames.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.stack(list(iterate_exr_frames(folder))), want)
    assert len(list(iterate_exr_frames(folder, 2))) == 2
    with OpenEXR.File(str(folder / "frame_00001.exr"), separate_channels=True) as file:
        header = dict(file.header())
        assert {c.pixels.dtype for c in file.channels().values()} == {np.dtype(np.float16)}
    assert header["compression"] == OpenEXR.ZIP_COMPRESSION
    assert header["colorSpace"] == "ACEScg"
    np.testing.assert_allclose(
        header["chromaticities"], (0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767),
        rtol=1e-6,
    )  # fmt: skip


def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ExrFolder(tmp_path / "x", {}) as writer:
            writer.write(np.zeros((1, 4, 4, 3), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(MediaError, match="not empty"):
        ExrFolder(tmp_path / "full", {})


def test_channels(tmp_path: Path) -> None:
    grey = np.random.default_rng(2).random((4, 5), np.float32)
    one = read_exr(write(tmp_path / "y.exr", {"Y": grey}))
    np.testing.assert_array_equal(one, np.repeat(grey[..., None], 3, axis=2))
    four = {name: grey + i for i, name in enumerate(["R", "G", "B", "A", "depth"])}
    got = read_exr(write(tmp_path / "rgba.exr", four))
    np.testing.assert_array_equal(got, np.stack([grey, grey + 1, grey + 2], axis=-1))
    with pytest.raises(MediaError, match="channels"):
        read_exr(write(tmp_path / "xy.exr", {"X": grey, "Z": grey}))
    write(tmp_path / "z.exr", {"Y": np.zeros((2, 2), np.float32)})
    (tmp_path / "xy.exr").unlink()
    with pytest.raises(MediaError, match="another size"):
        list(iterate_exr_frames(tmp_path))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_are_one_sentence(still: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(still.read_bytes())
    cut = data.draw(st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.exr"
    path.write_bytes(content[:cut])
    try:
        frame = read_exr(path)
    except MediaError as error:
        said = str(error)
    else:
        said = str(path)
        assert frame.shape == (*exr_size(path), 3)
        assert np.isfinite(frame).all()
    assert str(path) in said


def test_huge_headers_are_refused_without_reading_pixels(still: Path, tmp_path: Path) -> None:
    content = still.read_bytes()
    window = struct.pack("<4i", 0, 0, 29, 19)
    assert window in content
    for corner in ((10**6, 10**6), (2**30, 2**30), (-5, 19), (2**31 - 1, 0)):
        huge = tmp_path / "huge.exr"
        huge.write_bytes(content.replace(window, struct.pack("<4i", 0, 0, *corner)))
        with pytest.raises(MediaError, match=r"damaged|pixels"):
            read_exr(huge)


@pytest.mark.parametrize("name", ["absent.exr", "folder"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediaError, match="cannot read"):
        read_exr(tmp_path / name)
    with pytest.raises(MediaError, match=r"holds no \.exr files"):
        exr_files(tmp_path / "folder")
    assert not is_exr(tmp_path / "folder")


def test_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(UnsupportedError, match=r"pip install .*\[exr\]'"):
        ExrFolder(tmp_path / "x", {})


def test_published_values_of_the_curves() -> None:
    """Mid grey (0.18) and black: S-2016-001 (ACEScct), ARRI's LogC3 table (EI 800), BT.2408."""

    def code(curve: str, light: float) -> float:
        return float(TRANSFERS[curve][0](np.array([light], np.float32))[0])

    assert code("acescct", 0.18) == pytest.approx(0.413588, abs=1e-5)
    assert code("acescct", 0.0) == pytest.approx(0.0729055, abs=1e-6)
    assert code("logc3", 0.18) == pytest.approx(0.391007, abs=1e-5)
    assert code("logc3", 0.0) == pytest.approx(0.092809, abs=1e-6)
    white = hlg_signal(np.ones((1, 1, 3), np.float32))
    np.testing.assert_allclose(white, 0.75, atol=1e-5)
    luma, blue, red = hlg_planes(np.repeat(np.repeat(white, 2, axis=0), 2, axis=1))
    assert (luma == 721).all()  # 0.75 of 64 to 940
    assert (blue == 512).all()
    assert (red == 512).all()
    np.testing.assert_allclose(
        srgb_signal(np.array([0, 0.18, 1], np.float32)), [0, 0.46136, 1], atol=1e-4
    )


@given(LIGHT)
def test_formats_give_back_the_light_they_were_given(light: np.ndarray) -> None:
    for name in TRANSFERS:
        for files in ("rec709", "ap1"):
            style = HdrFormat(transfer=name, files=files)
            # colours of one space lie outside the other: start from light that both hold
            inside = style.decode(style.encode(light))
            again = style.decode(style.encode(inside))
            np.testing.assert_allclose(again, inside, rtol=2e-3, atol=2e-4)
    codes = HDR_FORMATS["ACESCCT"]
    np.testing.assert_array_equal(codes.decode(codes.encode(light)), np.clip(light, 0, 1))


@given(LIGHT)
def test_light_below_white_keeps_its_order_on_screen(light: np.ndarray) -> None:
    signal = srgb_signal(light)
    assert signal.min() >= 0
    assert signal.max() <= 1
    order = np.argsort(light.ravel())
    assert (np.diff(signal.ravel()[order]) >= 0).all()
