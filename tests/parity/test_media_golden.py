"""Media against the official reader and writer, and the resize against torch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ltx2rt.media.color import rgb_to_i420
from ltx2rt.media.hdr import (
    REC709_TO_REC2020,
    TRANSFERS,
    HdrFormat,
    hlg_planes,
    hlg_signal,
)
from ltx2rt.media.image import (
    crf_roundtrip,
    image_to_vae_input,
    load_image,
    resize_and_crop,
    resize_and_pad,
    to_vae_input,
)
from ltx2rt.media.reader import read_audio, read_video_frames
from ltx2rt.weights.safetensors import SafetensorsFile
from tests.parity.golden import golden_root, read_arrays
from tests.tolerances import TOLERANCES

# Two roundings of float32 at 255 (values 0..255), one at 1 (values -1..1): torch adds the four
# neighbours in another order.
RESIZE_ATOL = 5e-5
#: codes and signals lie in [0, 1]; light is exponential in them
CODE_ATOL, LIGHT_RTOL = TOLERANCES["scalar"].atol, TOLERANCES["scalar"].rtol
VAE_INPUT_ATOL = TOLERANCES["scalar"].atol


@pytest.fixture(scope="module")
def inputs() -> Path:
    root = golden_root()
    if root is None or not (root / "pipelines/media.safetensors").is_file():
        pytest.skip("the media goldens are not here (LTX2RT_GOLDEN)")
    return root / "pipelines/inputs"


@pytest.fixture(scope="module")
def golden(inputs) -> dict[str, np.ndarray]:
    return read_arrays(SafetensorsFile(inputs.parent / "media.safetensors"))


def names(golden: dict[str, np.ndarray], pattern: str) -> list[tuple[str, ...]]:
    """The groups of every tensor name that matches; at least one must."""
    found = [m.groups() for name in golden if (m := re.fullmatch(pattern, name))]
    assert found
    return found


def test_images_after_the_crf_round_trip(golden, inputs):
    for image, crf in names(golden, r"image\.(\w+)\.crf(\d+)\.u8"):
        got = crf_roundtrip(load_image(inputs / f"{image}.png"), int(crf))
        np.testing.assert_array_equal(got, golden[f"image.{image}.crf{crf}.u8"])


def test_images_as_vae_input(golden, inputs):
    for image, crf in names(golden, r"image\.(\w+)\.crf(\d+)\.vae_in"):
        want = golden[f"image.{image}.crf{crf}.vae_in"]
        got = image_to_vae_input(inputs / f"{image}.png", *want.shape[-2:], int(crf))
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=VAE_INPUT_ATOL)


def test_video_frames_and_their_fit(golden, inputs):
    for (video,) in names(golden, r"video\.(\w+)\.u8"):
        want = golden[f"video.{video}.u8"]
        frames = read_video_frames(inputs / f"{video}.mp4", len(want))
        np.testing.assert_array_equal(frames, want)
        crop = golden[f"video.{video}.center_crop"]
        got = to_vae_input(resize_and_crop(frames, *crop.shape[-2:]))
        np.testing.assert_allclose(got, crop, rtol=0, atol=VAE_INPUT_ATOL)
        for name in ("reflect_pad", "reflect_pad_noresize"):
            padded = golden[f"video.{video}.{name}"]  # [1, 3, f, H, W] in 0..255
            got = resize_and_pad(frames[: padded.shape[2]], *padded.shape[-2:])
            got = np.moveaxis(got, -1, 0)[None]
            np.testing.assert_allclose(got, padded, rtol=0, atol=RESIZE_ATOL)


def test_yuv(golden):
    got, nan_values = rgb_to_i420(golden["color.rgb"])
    np.testing.assert_array_equal(got, golden["color.yuv420p_bt709_u8"])
    assert nan_values == 0


def test_log_curves(golden):
    linear, codes = golden["color.curve.linear_in"], golden["color.curve.code_in"]
    for (name,) in names(golden, r"color\.curve\.(\w+)\.compress"):
        compress, decompress, _ = TRANSFERS[name]
        want = golden[f"color.curve.{name}.compress"]
        np.testing.assert_allclose(compress(linear), want, rtol=0, atol=CODE_ATOL)
        want = golden[f"color.curve.{name}.decompress"]
        np.testing.assert_allclose(decompress(codes), want, rtol=LIGHT_RTOL, atol=CODE_ATOL)


def test_hdr_formats(golden):
    linear = golden["color.linear"][0]
    for (name,) in names(golden, r"color\.(\w+)\.working_from_rec709"):
        codes = np.moveaxis(golden[f"color.{name}.working_from_rec709"][0, :, 0], 0, -1)
        got = HdrFormat(transfer=name, files="rec709").encode(linear)
        np.testing.assert_allclose(got, codes, rtol=0, atol=CODE_ATOL)
        light = np.moveaxis(golden[f"color.{name}.linear_acescg"][0, :, 0], 0, -1)
        got = HdrFormat(transfer=name, files="ap1").decode(codes)
        np.testing.assert_allclose(got, light, rtol=LIGHT_RTOL, atol=CODE_ATOL)


#: the official code makes HLG of ACEScg light too; ours are masters of Rec.709 light
AP1_TO_REC2020 = np.array(
    [
        [1.02582475, -0.02005319, -0.00577156],
        [-0.00223437, 1.0045865, -0.00235213],
        [-0.00501335, -0.02529007, 1.03030342],
    ],
    np.float32,
)


def test_hlg(golden):
    matrices = {"rec709": REC709_TO_REC2020, "acescg": AP1_TO_REC2020}
    for (name,) in names(golden, r"color\.hlg\.(\w+)\.signal"):
        signal = np.moveaxis(golden[f"color.hlg.{name}.signal"][0], 0, -1)
        got = hlg_signal(golden["color.linear"][0], matrices[name])
        np.testing.assert_allclose(got, signal, rtol=0, atol=CODE_ATOL)
        for plane, values in zip("yuv", hlg_planes(got), strict=True):
            np.testing.assert_array_equal(values, golden[f"color.hlg.{name}.{plane}"][0])


def test_audio_window(golden, inputs):
    """The golden waveform is the 0.2 s from 0.1 s on (the a2vid case)."""
    got, rate = read_audio(inputs / "tone.wav", 0.1, 0.2)
    assert rate == 44100
    np.testing.assert_array_equal(got[None], golden["audio.tone.waveform"])


@pytest.mark.parametrize("source", [(37, 53), (64, 64), (5, 3), (1, 1)])
@pytest.mark.parametrize("target", [(64, 96), (11, 200), (300, 13), (37, 53), (74, 106), (1, 1)])
def test_resize_is_that_of_torch(source, target):
    frames = np.random.default_rng(0).random((2, *source, 3), np.float32) * 255
    height, width = target
    scale = max(height / source[0], width / source[1])
    full = int(np.ceil(source[0] * scale)), int(np.ceil(source[1] * scale))
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        size=full,
        mode="bilinear",
        align_corners=False,
    )
    top, left = (full[0] - height) // 2, (full[1] - width) // 2
    want = resized[..., top : top + height, left : left + width].permute(0, 2, 3, 1).numpy()
    got = resize_and_crop(frames, height, width)
    np.testing.assert_allclose(got, want, rtol=0, atol=RESIZE_ATOL)
