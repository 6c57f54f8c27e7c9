"""`--hdr` on the demo bundle: EXR in, EXR and an HLG video out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.reference_conditioner import load_reference
from ltx2rt.config import GenerationConfig, ImageCondition, RuntimeConfig
from ltx2rt.latents.shapes import VideoPixelShape
from ltx2rt.media.exr import ExrFolder, iterate_exr_frames
from ltx2rt.media.hdr import HDR_FORMATS, hlg_planes, hlg_signal
from ltx2rt.media.hlg_writer import HlgWriter
from ltx2rt.media.image import resize_and_crop, resize_and_pad
from ltx2rt.media.reader import probe_video
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.results.hdr_clip import HlgClip
from tests.parity.command_line import SMALL, expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.tolerances import TOLERANCES

pytest.importorskip("OpenEXR")
ASK = ("--prompt", "a lake", "--seed", 5, *SMALL, "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hdr")


@pytest.fixture(scope="module")
def light(folder: Path) -> np.ndarray:
    """Nine frames of 80x48 up to eight times diffuse white, also in `folder/light`."""
    frames = np.random.default_rng(0).random((9, 48, 80, 3)).astype(np.float16) * np.float16(8)
    with ExrFolder(folder / "light", HDR_FORMATS["ACESCG"].exr_attributes) as writer:
        writer.write(frames.astype(np.float32))
    Image.fromarray(np.zeros((48, 80, 3), np.uint8)).save(folder / "photo.png")
    return frames.astype(np.float32)


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[DistilledPipeline]:
    runtime = RuntimeConfig(threads=1, residency="resident")
    with DistilledPipeline(open_bundle(demo_bundle), runtime) as pipeline:
        yield pipeline


@pytest.mark.parametrize("mode", HDR_FORMATS)
def test_an_exr_image_pins_the_first_frame(
    pipe: DistilledPipeline, folder: Path, light: np.ndarray, mode: str
) -> None:
    still = folder / "light/frame_00000.exr"
    clip = pipe(
        GenerationConfig(
            prompt="a lake", height=64, width=64, num_frames=9, hdr=mode,
            images=(ImageCondition(path=still),),
        )
    )  # fmt: skip
    codes = HDR_FORMATS[mode].encode(resize_and_crop(light[:1], 64, 64))
    want = pipe.engines.video_encoder().encode(np.moveaxis(2 * codes - 1, -1, 0)[None])
    bound = TOLERANCES["scalar"]
    got = clip.latents["stage_2.video"][:, :, :1]
    np.testing.assert_allclose(got, want, atol=bound.atol, rtol=bound.rtol)
    assert isinstance(clip, HlgClip)
    decoded = np.concatenate(list(clip.decoded_frames()))
    exr = np.concatenate(list(clip.exr_frames()))
    np.testing.assert_array_equal(exr, HDR_FORMATS[mode].decode(decoded))


def test_reference_folders_are_filled_by_reflection(folder: Path, light: np.ndarray) -> None:
    pixels = VideoPixelShape(num_frames=9, height=64, width=96, frame_rate=24)
    style = HDR_FORMATS["SRGB_LINEAR"]
    got = load_reference(folder / "light", pixels, temporal_scale=4, hdr=style)
    want = 2 * style.encode(resize_and_pad(light[[0, 1, 5]], 64, 96)) - 1
    np.testing.assert_array_equal(got, np.moveaxis(want, -1, 0)[None])


@pytest.mark.parametrize(
    ("mode", "tag"), [("srgb_linear", "sRGB"), ("acescg", "ACEScg"), ("acescct", "ACEScct")]
)
def test_exr_frames_and_hlg_video(
    demo_bundle: Path, pipe: DistilledPipeline, folder: Path, mode: str, tag: str
) -> None:
    import OpenEXR

    target = folder / f"{mode}.mp4"
    outcome = run("generate", demo_bundle, *ASK, "--hdr", mode, "-o", target, "--json")
    assert outcome.code == 0, outcome.err
    exr = np.stack(list(iterate_exr_frames(folder / f"{mode}_exr")))
    clip = pipe(
        GenerationConfig(
            prompt="a lake", seed=5, height=64, width=64, num_frames=9, hdr=mode.upper()
        )
    )
    want = np.concatenate(list(clip.exr_frames())).astype(np.float16)
    np.testing.assert_array_equal(exr, want.astype(np.float32))
    with OpenEXR.File(str(folder / f"{mode}_exr/frame_00000.exr"), header_only=True) as file:
        assert file.header()["colorSpace"] == tag
    info = probe_video(target)
    assert (info.width, info.height, info.num_frames) == (64, 64, 9)
    assert (info.has_audio, info.colour_matrix, info.colour_range) == (True, 9, 1)
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.codec_tag) == ("hevc", "yuv420p10le", "hvc1")
        assert (context.color_primaries, context.color_trc) == (9, 18)
        luma = [f.to_ndarray()[:64] for f in container.decode(video=0)]
    assert clip.hdr is not None
    linear = clip.hdr.linear_rec709(np.concatenate(list(clip.decoded_frames())))
    planes = np.stack([hlg_planes(hlg_signal(frame))[0] for frame in linear])
    # 10 bits at CRF 12: a few steps
    assert np.abs(np.stack(luma).astype(int) - planes.astype(int)).mean() < 8


def test_hlg_writer_takes_clips_of_any_length(tmp_path: Path) -> None:
    """x265 once gave the packets of short clips undefined times, every few runs."""
    for count in (1, 2, 3, 4) * 5:
        with HlgWriter(tmp_path / "x.mp4", 64, 64, 24) as writer:
            writer.write(np.full((count, 64, 64, 3), 1, np.float32))
        assert probe_video(tmp_path / "x.mp4").num_frames == count


def test_hlg_writer_keeps_exact_frame_rates(tmp_path: Path) -> None:
    with HlgWriter(tmp_path / "x.mp4", 64, 64, 23.976) as writer:
        writer.write(np.full((2, 64, 64, 3), 1, np.float32))
    assert str(probe_video(tmp_path / "x.mp4").frame_rate) == "24000/1001"
    with av.open(str(tmp_path / "x.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray()
    assert abs(int(frame[32, 32]) - (64 + 0.75 * 876)) <= 2  # white is at 75 %


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--image", "light/frame_00000.exr"], ["high dynamic range", "--hdr"]),
        (
            ["--hdr", "ACESCG", "--image", "light/frame_00000.exr", "--image", "photo.png@8"],
            ["is of high dynamic range and", "photo.png is not; use one kind"],
        ),
        (["--hdr", "ACESCG", "--image", "light"], ["is a folder; an image is a single file"]),
        (["--hdr", "ACESCG", "--image", "absent.exr"], ["absent.exr", "no such file"]),
        (
            ["--hdr", "ACESCG", "--pipeline", "ic-lora", "--reference", "light/frame_00000.exr"],
            ["is an EXR still; a video is a folder"],
        ),
        (["--hdr", "ACESCG", "--stream"], ["goes to an ordinary file", "leave --stream"]),
        (["--hdr", "ACESCG", "--pipeline", "dfr"], ["has no use for --hdr"]),
    ],
)
def test_wrong_requests(
    demo_bundle: Path, folder: Path, light: np.ndarray, tmp_path: Path,
    flags: list, parts: list[str],
) -> None:  # fmt: skip
    filled = [folder / f if "." in str(f) or f == "light" else f for f in flags]
    with unchanged(tmp_path):
        outcome = run("generate", demo_bundle, *ASK[:-1], *filled, "-o", tmp_path / "x.mp4")
    expect_user_error(outcome, *parts)
    (tmp_path / "x_exr").mkdir()
    (tmp_path / "x_exr/a").touch()
    outcome = run("generate", demo_bundle, *ASK[:-1], "--hdr", "ACESCG", "-o", tmp_path / "x.mp4")
    expect_user_error(outcome, "x_exr", "not empty")
