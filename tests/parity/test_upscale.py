"""`--pipeline upscale` on the demo bundle: sizes, frames and sound of what comes out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS, VideoPixelShape
from ltx2rt.media.image import load_image, resize_and_pad, to_vae_input
from ltx2rt.media.reader import probe_video, read_audio, read_video_frames
from ltx2rt.media.writer import VideoWriter
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.upscale import UpscaleInputs, UpscalePipeline, padded
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.media_files import video_file

ASK = ("--pipeline", "upscale", "--threads", 1, "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upscale")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """Eleven frames of 70x40 with sound: no number is one that the model takes."""
    random = np.random.default_rng(0)
    frames = np.repeat(random.random((1, 40, 70, 3), np.float32), 11, axis=0)
    wave = random.uniform(-0.5, 0.5, (2, 22000)).astype(np.float32)
    with VideoWriter(folder / "source.mp4", 70, 40, 24, audio=(wave, 48000)) as writer:
        writer.write(frames)
    return folder / "source.mp4"


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    image = np.random.default_rng(1).integers(0, 255, (33, 45, 3), np.uint8)
    Image.fromarray(image).save(folder / "photo.png")
    return folder / "photo.png"


@pytest.mark.parametrize(
    ("upscale", "size", "frames"),
    [("spatial", (140, 80), 11), ("temporal", (70, 40), 21), ("both", (140, 80), 21)],
)
def test_size_frames_and_sound_of_a_video(
    keyframe_bundle: Path, folder: Path, source: Path, upscale: str, size: tuple, frames: int
) -> None:
    target = folder / f"{upscale}.mp4"
    outcome = run(
        "generate", keyframe_bundle, *ASK, "--source", source, "--upscale", upscale, "-o", target,
        "--audio-output", target.with_suffix(".wav"), "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["timings_s"].keys() == {"encode video", "upsample", "decode video"}
    info = probe_video(target)
    assert ((info.width, info.height), info.num_frames) == (size, frames)
    assert info.frame_rate == (24 if upscale == "spatial" else 48)
    kept, rate = read_audio(target.with_suffix(".wav"))
    want, want_rate = read_audio(source)
    assert rate == want_rate
    np.testing.assert_allclose(kept, want, atol=2 / 32767)  # the samples themselves, in 16 bits
    assert read_video_frames(target).std() > 1


def test_sound_is_passed_on_bit_by_bit(demo_bundle: Path, source: Path) -> None:
    with UpscalePipeline(open_bundle(demo_bundle)) as pipe:
        clip = pipe(source=source)
        np.testing.assert_array_equal(clip.audio, read_audio(source)[0])


def test_an_image_becomes_a_png(demo_bundle: Path, folder: Path, photo: Path) -> None:
    outcome = run(
        "generate", demo_bundle, *ASK, "--source", photo, "-o", folder / "large.png", "--json"
    )
    assert outcome.code == 0, outcome.err
    large = load_image(folder / "large.png")
    assert large.shape == (66, 90, 3)
    assert Image.open(folder / "large.png").text["pipeline"] == "upscale"
    with UpscalePipeline(open_bundle(demo_bundle)) as pipe:
        padded = to_vae_input(resize_and_pad(load_image(photo)[None], 64, 64))
        latent = pipe.engines.upsampler("spatial_upsampler")(
            pipe.engines.video_encoder().encode(padded)
        )
        frame = next(pipe.engines.video_decoder().decode(latent))[0, :66, :90]
    # the number of threads moves the last bits, and with them the rounding of a few values
    np.testing.assert_allclose(large, frame * 255, atol=0.502)


def test_refinement_follows_the_prompt(demo_bundle: Path, photo: Path, folder: Path) -> None:
    made = []
    for number, (sigma, prompt) in enumerate([(0.9, "a lake"), (0.9, "a tree"), (0.2, "a lake")]):
        target = folder / f"refined{number}.png"
        outcome = run(
            "generate", demo_bundle, *ASK, "--source", photo, "--prompt", prompt,
            "--refine", sigma, "-o", target, "--json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert {"prompt", "refine"} <= outcome.json["timings_s"].keys()
        made.append(load_image(target).astype(float))
    plain = load_image(folder / "large.png").astype(float)
    assert np.abs(made[0] - made[1]).max() > 0
    # less noise changes less
    assert np.abs(made[2] - plain).mean() < np.abs(made[0] - plain).mean()


@pytest.mark.parametrize(
    ("scale", "source", "size"),
    [((2, 1), (40, 70), (80, 140)), ((3, 2), (40, 70), (60, 105)), ((3, 2), (33, 64), (49, 96))],
)
def test_sizes_at_every_scale(scale: tuple, source: tuple, size: tuple) -> None:
    pipe = UpscalePipeline.__new__(UpscalePipeline)
    pipe.engines = Engines(SimpleNamespace(options=lambda _: {"spatial_scale": scale}))  # type: ignore[arg-type]
    shape = VideoPixelShape(num_frames=1, height=source[0], width=source[1], frame_rate=24)
    inputs = UpscaleInputs(source=Path("x.mp4"))
    assert pipe.output_size(inputs, shape) == size
    # the padded latent, upsampled, covers it
    frames = padded(np.zeros((1, *source, 3), np.uint8), VIDEO_SCALE_FACTORS)
    cells = [n // 32 for n in frames.shape[1:3]]
    upsampler = LatentUpsampler(None, scale)  # type: ignore[arg-type]
    covered = [32 * n for n in upsampler.output_cells(1, *cells)[1:]]
    assert all(a >= b for a, b in zip(covered, size, strict=True))


def test_noise_levels_of_the_refinement() -> None:
    def sigmas(refine: float) -> tuple[float, ...]:
        return UpscaleInputs(source=Path("x.mp4"), refine=refine).sigmas

    assert sigmas(0.909375) == (0.909375, 0.725, 0.421875, 0.0)  # stage 2 of the pipelines
    assert sigmas(0.5) == (0.5, 0.421875, 0.0)
    assert sigmas(0.1) == (0.1, 0.0)
    with pytest.raises(OptionError, match=r"upscale='more'; allowed"):
        UpscaleInputs(source=Path("x.mp4"), upscale="more")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["it needs --source"]),
        (["--source", "absent.mp4"], ["absent.mp4", "no such file"]),
        (["--source", "VIDEO", "--upscale", "temporal"], ["this request needs temporal_upsampler"]),
        (["--source", "VIDEO", "--refine", 0.5], ["refining takes a prompt"]),
        (
            ["--source", "VIDEO", "--lora", "x", "--prompt", "a lake"],
            ["LoRAs would change nothing", "a prompt would change nothing"],
        ),
        (
            ["--source", "VIDEO", "--stage-2-sampler", "euler"],
            ["--stage-2-sampler is for pipelines"],
        ),
        (["--source", "VIDEO", "--embeddings", "x"], ["embeddings would change nothing"]),
        (["--source", "VIDEO", "--save-embeddings", "x"], ["--save-embeddings needs --prompt"]),
        (
            ["--source", "SILENT", "--audio-output", "x.wav"],
            ["clips with sound; this one has none"],
        ),
        (["--source", "VIDEO", "--frames", "TARGET"], ["is named for 2 outputs"]),
        (["--source", "VIDEO", "--refine", 2], ["refine=2.0 is not above 0"]),
        (["--source", "PHOTO", "--upscale", "both"], ["is an image", "no frame rate"]),
        (["--source", "VIDEO", "--height", 64], ["has no use for --height"]),
        (["--source", "PHOTO"], ["the extension '.mp4' is not allowed here", ".png"]),
    ],
)
def test_wrong_requests(
    demo_bundle: Path, source: Path, photo: Path, tmp_path: Path, flags: list, parts: list[str]
) -> None:
    names = {"VIDEO": source, "PHOTO": photo, "TARGET": tmp_path / "x.mp4"}
    names["SILENT"] = video_file(tmp_path / "silent.mp4", 9, sound=False)
    filled = [names.get(flag, flag) for flag in flags]
    with unchanged(tmp_path):
        outcome = run("generate", demo_bundle, *ASK[:-1], *filled, "-o", tmp_path / "x.mp4")
    expect_user_error(outcome, *parts)
    assert "encode video" not in outcome.err
