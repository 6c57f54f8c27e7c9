"""What a retake keeps and makes anew: parts in time, masks, larger frames, and how much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.reference_conditioner import load_mask
from ltx2rt.config import GenerationConfig, ImageCondition, RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import VideoPixelShape
from ltx2rt.media.image import image_to_vae_input, to_vae_input
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.retake import RetakePipeline
from ltx2rt.pipelines.retake_inputs import RetakeInputs, TimeWindow
from ltx2rt.results.clip import Clip
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.media_files import video_file

CANVAS = VideoPixelShape(num_frames=17, height=64, width=96, frame_rate=24.0)
#: two steps are enough to see what is kept
FEW: dict[str, Any] = {"sigmas": (1.0, 0.5, 0.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("where")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return video_file(folder / "source.mp4", 17, 64, 96)


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[RetakePipeline]:
    runtime = RuntimeConfig(threads=1, residency="resident")
    with RetakePipeline(open_bundle(demo_bundle), runtime) as pipeline:
        yield pipeline


def encoded(pipe: RetakePipeline, frames: np.ndarray) -> np.ndarray:
    return pipe.engines.video_encoder().encode(to_vae_input(frames.astype(np.float32)))


def latents(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    return clip.latents["stage_1.video"], clip.latents["stage_1.audio"]


def is_kept(made: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Cells `[F, H, W]` or steps `[T]` that are those of the source."""
    apart = np.abs(made - want).max(axis=1)[0]
    return apart.max(axis=-1) < 1e-4 if made.ndim == 4 else apart < 1e-4


def test_parts_of_picture_and_sound_apart(pipe: RetakePipeline, source: Path) -> None:
    clip = pipe(
        prompt="a",
        video=source,
        video_parts=(TimeWindow(start=0.4, end=0.45), TimeWindow(start=0, end=0.01)),
        audio_parts=(TimeWindow(start=0.2, end=0.3),),
        **FEW,
    )
    video, audio = latents(clip)
    kept = is_kept(video, encoded(pipe, read_video_frames(source)))
    assert [bool(f.all()) for f in kept] == [False, True, False]
    assert not kept[[0, 2]].any()
    sound = pipe(prompt="a", video=source, start_time=0, end_time=1, regenerate_audio=False, **FEW)
    kept = is_kept(audio, latents(sound)[1])
    assert np.flatnonzero(~kept).tolist() == [5, 6, 7, 8]  # steps begin at 0.04 k - 0.03 s


def test_mask(pipe: RetakePipeline, source: Path, folder: Path) -> None:
    """What white touches is made anew, as a whole cell; the sound is kept as it is."""
    pixels = np.zeros((64, 96), np.uint8)
    pixels[:32, 30:40] = 255
    Image.fromarray(pixels).save(folder / "mask.png")
    clip = pipe(prompt="a", video=source, mask=folder / "mask.png", **FEW)
    kept = is_kept(latents(clip)[0], encoded(pipe, read_video_frames(source)))
    assert kept.shape == (3, 2, 3)
    assert (~kept).tolist() == [[[True, True, False], [False] * 3]] * 3
    assert clip.waveform is not None
    moving = np.zeros((17, 64, 96, 3), np.float32)
    moving[9:, 32:] = 1
    from ltx2rt.media.writer import VideoWriter

    with VideoWriter(folder / "mask.mp4", 96, 64, 24) as writer:
        writer.write(moving)
    clip = pipe(prompt="a", video=source, mask=folder / "mask.mp4", start_time=0, end_time=9, **FEW)
    kept = is_kept(latents(clip)[0], encoded(pipe, read_video_frames(source)))
    assert (~kept).tolist() == [[[False] * 3] * 2] * 2 + [[[False] * 3, [True] * 3]]


def test_a_black_mask_is_refused(
    pipe: RetakePipeline, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture is read as any: upright, and what is transparent is white."""
    black = folder / "black.png"
    Image.new("L", (5, 5)).save(black)
    monkeypatch.setattr("ltx2rt.pipelines.engines.Engines.prompt_encoder", pytest.fail)
    with pytest.raises(OptionError, match="black all over: it leaves nothing to make anew"):
        pipe(prompt="a", video=source, mask=black, **FEW)
    clear = folder / "clear.png"
    Image.new("LA", (5, 5)).save(clear)
    with pytest.warns(UserWarning, match="transparent parts of .* are shown white"):
        assert load_mask(clear, CANVAS, (64, 96)).min() == 1


def test_outpaint(pipe: RetakePipeline, source: Path, folder: Path) -> None:
    clip = pipe(prompt="a", video=source, outpaint="130x100", **FEW)
    assert (clip.height, clip.width) == (100, 130)
    frames = np.pad(read_video_frames(source), ((0, 0), (0, 36), (0, 34), (0, 0)), mode="edge")
    frames = np.pad(frames, ((0, 0), (0, 28), (0, 30), (0, 0)), mode="reflect")
    kept = is_kept(latents(clip)[0], encoded(pipe, frames))
    assert kept.shape == (3, 4, 5)
    want = np.zeros((4, 5), bool)
    want[:2, :3] = True
    assert (kept == want).all()
    clip.save(folder / "out.mp4")
    assert probe_video(folder / "out.mp4").height == 100


def test_denoise_strength(pipe: RetakePipeline, source: Path) -> None:
    """The less, the nearer to the source; and only the steps below it are made."""
    want = encoded(pipe, read_video_frames(source)).ravel()
    near = []
    for strength in (0.2, 0.7):
        clip = pipe(prompt="a", video=source, denoise_strength=strength)
        near.append(np.corrcoef(latents(clip)[0].ravel(), want)[0, 1])
        assert clip.record.stages["stage_1"]["sigmas"][0] == strength
    assert near[0] > near[1] > 0
    assert near[0] > 0.9


def test_images(pipe: RetakePipeline, source: Path, folder: Path) -> None:
    path = folder / "photo.png"
    Image.fromarray(np.full((64, 96, 3), (250, 10, 10), np.uint8)).save(path)
    images = (ImageCondition(path=path, crf=0),)
    clip = pipe(prompt="a", video=source, start_time=0, end_time=0.2, images=images, **FEW)
    want = pipe.engines.video_encoder().encode(image_to_vae_input(path, 64, 96, 0))
    assert is_kept(latents(clip)[0][:, :, :1], want).all()


def test_an_end_far_behind_that_of_the_source(pipe: RetakePipeline, source: Path) -> None:
    config = GenerationConfig(prompt="a", **FEW)
    inputs = RetakeInputs(video=source, start_time=0.1, end_time=1e9)
    with pytest.warns(UserWarning, match=r"ends at 1e\+09 seconds, and .* lasts 0\.708"):
        pipe.prepare(Request(config=config, inputs=inputs))


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ((), ["say what is made anew: --start-time and --end-time"]),
        (("--video-part", "3-2"), ["a part from 3 to 2 seconds is not 0 <= start < end"]),
        (("--video-part", "x"), ["'x' is not START-END in seconds"]),
        (("--video-part", "5-6"), ["the part from 5 seconds on lies behind the end"]),
        (("--mask", "none.png"), ["none.png", "no such file"]),
        (("--outpaint", "64x64"), ["--outpaint=64x64 is 64x64 pixels, smaller than the 96x64"]),
        (("--denoise-strength", 2), ["--denoise-strength=2.0 is not above 0"]),
    ],
)
def test_refused_before_work(
    demo_bundle: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[Any, ...],
    parts: list[str],
) -> None:
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(tmp_path):
        outcome = run(
            "generate", demo_bundle, "--pipeline", "retake", "--prompt", "a", "--video", source,
            *flags, "-o", tmp_path / "x.mp4",
        )  # fmt: skip
        expect_user_error(outcome, *parts)
