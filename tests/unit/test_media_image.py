"""Stills: orientation, colour profiles, damaged files, H.264 round trip, resize and crop."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from ltx2rt.errors import MediaError, OptionError, ShapeError
from ltx2rt.media.image import (
    crf_roundtrip,
    fill,
    image_to_vae_input,
    resize_and_crop,
    resize_and_pad,
    to_vae_input,
)
from ltx2rt.media.still_reader import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)


def save(path: Path, array: np.ndarray = PIXELS, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", exif=exif, **options)
    with Image.open(path) as image:
        want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(load_image(path), want)
    assert orientation == 1 or want.shape != PIXELS.shape or (want != PIXELS).any()


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((6, 10), np.uint8)
    alpha[:, :5] = 255
    rgba = np.dstack([PIXELS, alpha])
    white = np.where(alpha[..., None] > 0, PIXELS, 255)
    grey = np.where(alpha[..., None] > 0, PIXELS[..., :1].repeat(3, -1), 255)
    few = Image.fromarray(rgba).quantize(64, method=Image.Quantize.FASTOCTREE)
    few.save(tmp_path / "few.png")
    for path, want in (
        (save(tmp_path / "a.png", rgba), white),
        (save(tmp_path / "b.png", rgba[..., [0, 3]]), grey),
    ):
        with pytest.warns(UserWarning, match="transparent parts"):
            np.testing.assert_array_equal(load_image(path), want)
    with pytest.warns(UserWarning, match="transparent parts"):
        assert (load_image(tmp_path / "few.png")[:, 5:] == 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opaque = save(tmp_path / "c.png", np.dstack([PIXELS, np.full((6, 10), 255, np.uint8)]))
        np.testing.assert_array_equal(load_image(opaque), PIXELS)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / f"moving{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(UserWarning, match="an animation of 2 frames, of which the first is taken"):
        assert load_image(path)[0, 0].tolist() == [255, 0, 0]


def test_palette_with_a_profile(tmp_path):
    flat = Image.fromarray(np.full((4, 4, 3), 128, np.uint8)).quantize(4)
    flat.save(tmp_path / "a.png", icc_profile=linear_profile())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = load_image(tmp_path / "a.png")
    assert np.abs(got.astype(float) - 187.5).max() <= 1.5


def test_other_modes(tmp_path):
    grey = load_image(save(tmp_path / "l.png", PIXELS[..., 0]))
    np.testing.assert_array_equal(grey, PIXELS[..., :1].repeat(3, -1))
    deep = PIXELS[..., 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(load_image(save(tmp_path / "deep.png", deep)), grey)
    assert load_image(save(tmp_path / "p.png", mode="P")).shape == (6, 10, 3)
    assert load_image(save(tmp_path / "cmyk.jpg", mode="CMYK")).shape == (6, 10, 3)
    full = PIXELS[..., 0].astype(np.int32) * 65537
    with pytest.raises(MediaError, match="32-bit grey"):
        load_image(save(tmp_path / "grey32.tiff", full))
    with pytest.raises(MediaError, match="floating point"):
        load_image(save(tmp_path / "f.tiff", PIXELS[..., 0].astype(np.float32)))


def linear_profile() -> bytes:
    """An RGB profile like sRGB but with gamma 1, made by patching the curves of the sRGB one."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(struct.unpack(">I", data[128:132])[0]):
        tag, offset, _ = struct.unpack(">4sII", data[132 + 12 * index : 144 + 12 * index])
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + 12] = b"curv" + bytes(8)  # no points: identity
    return bytes(data)


def test_colour_profile_is_converted_to_srgb(tmp_path):
    flat = np.full((4, 4, 3), 128, np.uint8)
    path = save(tmp_path / "a.png", flat, icc_profile=linear_profile())
    # linear 128/255 = 0.502 is 0.7354 in sRGB: 187.5
    assert np.abs(load_image(path).astype(float) - 187.5).max() <= 1.5
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = load_image(save(tmp_path / "b.png", PIXELS, icc_profile=srgb))
    assert np.abs(same.astype(int) - PIXELS).max() <= 1
    with pytest.warns(UserWarning, match="colour profile"):
        broken = load_image(save(tmp_path / "c.png", PIXELS, icc_profile=b"no profile"))
    np.testing.assert_array_equal(broken, PIXELS)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"hello, I am text" * 10, "not an image"),
        (bomb(10_000, 10_000), "10000x10000 pixels"),
        (bomb(60_000, 60_000), "twice"),
        (bomb(10, 10), "damaged or truncated"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        load_image(path)
    assert "a.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_directory(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        load_image(tmp_path / "a.png")
    with pytest.raises(MediaError, match="directory"):
        load_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
def test_damaged_files_are_read_or_refused_never_crash(tmp_path, suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    data = buffer.getvalue()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError):
        load_image(path)
    rng = np.random.default_rng(2)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert load_image(path).shape[-1] == 3
            except MediaError:
                pass


def test_crf_roundtrip():
    smooth = np.indices((31, 45)).sum(0).astype(np.uint8)[..., None].repeat(3, -1) * 3
    fine, coarse = crf_roundtrip(smooth, 10), crf_roundtrip(smooth, 45)
    assert fine.shape == coarse.shape == (30, 44, 3)
    assert fine.dtype == np.uint8
    error = [np.abs(x.astype(int) - smooth[:30, :44]).mean() for x in (fine, coarse)]
    assert 0 < error[0] < 3 < error[1] < 30  # measured 0.8 and 7
    assert crf_roundtrip(smooth, 0) is smooth
    assert crf_roundtrip(smooth[:1], 33).shape == (1, 45, 3)


@pytest.mark.parametrize("crf", [None, -1, 52])
def test_bad_crf(crf):
    with pytest.raises(OptionError, match="crf"):
        crf_roundtrip(PIXELS, crf)


def test_size_that_h264_refuses():
    with pytest.raises(MediaError, match=r"H\.264"):
        crf_roundtrip(np.zeros((2, 20_000, 3), np.uint8), 33)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(1, 20))
def test_resize_and_crop_against_the_definition(h, w, height, width):
    frames = np.random.default_rng(h * w).random((2, h, w, 3), np.float32)
    got = resize_and_crop(frames, height, width)
    scale = max(height / h, width / w)
    full = int(np.ceil(h * scale)), int(np.ceil(w * scale))
    top, left = (full[0] - height) // 2, (full[1] - width) // 2
    for y in (0, height // 2, height - 1):
        for x in (0, width // 2, width - 1):
            sy = max(0.0, (y + top + 0.5) * h / full[0] - 0.5)
            sx = max(0.0, (x + left + 0.5) * w / full[1] - 0.5)
            y0, x0 = min(int(sy), h - 1), min(int(sx), w - 1)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            ty, tx = sy - y0, sx - x0
            want = (1 - ty) * ((1 - tx) * frames[:, y0, x0] + tx * frames[:, y0, x1])
            want += ty * ((1 - tx) * frames[:, y1, x0] + tx * frames[:, y1, x1])
            # float32 source positions up to 12: 1e-6, times a slope of at most 1
            np.testing.assert_allclose(got[:, y, x], want, atol=5e-6)


def test_resize_and_pad():
    frames = np.arange(2 * 3 * 4 * 1, dtype=np.float32).reshape(2, 3, 4, 1)
    got = resize_and_pad(frames, 5, 6)[0, ..., 0]
    np.testing.assert_array_equal(got, np.pad(frames[0, ..., 0], ((0, 2), (0, 2)), mode="reflect"))
    wide = resize_and_pad(frames, 3, 9)[0, ..., 0]  # padding 5 >= content 4: repeats the edge
    np.testing.assert_array_equal(wide[:, 4:], frames[0, :, 3:, 0].repeat(5, 1))
    small = resize_and_pad(np.full((1, 8, 16, 3), 3, np.float32), 4, 6)
    np.testing.assert_array_equal(small, np.full((1, 4, 6, 3), 3, np.float32))


def test_fill_keeps_the_picture_in_the_part_that_is_shown():
    frames = np.random.default_rng(0).random((1, 7, 9, 3), np.float32)
    got = fill(frames, 8, 12, (7, 9))
    np.testing.assert_array_equal(got[:, :7, :9], frames)
    np.testing.assert_array_equal(got[:, :7, 9:], frames[:, :, -2:-5:-1])
    np.testing.assert_array_equal(fill(frames, 5, 6, (5, 6)), resize_and_crop(frames, 5, 6))


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 0, 4, 3)])
def test_resize_refuses(shape):
    with pytest.raises(ShapeError, match="resized"):
        resize_and_crop(np.zeros(shape, np.float32), 4, 4)


def test_vae_input(tmp_path):
    path = save(tmp_path / "a.png")
    got = image_to_vae_input(path, 6, 10, 0)
    assert got.shape == (1, 3, 1, 6, 10)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    want = PIXELS.astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(got[0, :, 0], want.transpose(2, 0, 1))
    np.testing.assert_array_equal(got, to_vae_input(PIXELS[None].astype(np.float32)))
    assert image_to_vae_input(path, 32, 64, 33).shape == (1, 3, 1, 32, 64)
