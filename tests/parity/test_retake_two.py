"""A retake in two stages keeps the source at its own size, wherever it is not made anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.config import ImageCondition, RuntimeConfig
from ltx2rt.media.image import image_to_vae_input, resize_and_crop, resize_and_pad, to_vae_input
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.pipelines.retake_inputs import TimeWindow
from ltx2rt.pipelines.retake_two import GuidedTwoStageRetakePipeline, TwoStageRetakePipeline
from ltx2rt.results.record import record_in
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.media_files import video_file
from tests.parity.test_retake_where import is_kept

#: a step a stage is enough to see what is kept
FEW: dict[str, Any] = {"prompt": "a", "sigmas": (1.0, 0.0), "stage_2_sigmas": (0.9, 0.0)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70x100 pixels, which are rendered at 128x128: neither is a multiple of 64."""
    return video_file(tmp_path_factory.mktemp("two") / "source.mp4", 15, 70, 100)


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[TwoStageRetakePipeline]:
    runtime = RuntimeConfig(threads=1, residency="resident")
    with TwoStageRetakePipeline(open_bundle(demo_bundle), runtime) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def encoded(pipe: TwoStageRetakePipeline, source: Path) -> dict[str, np.ndarray]:
    """The source's latent at the size of each stage."""
    frames = np.pad(read_video_frames(source), ((0, 2), (0, 0), (0, 0), (0, 0)), mode="edge")
    full = resize_and_pad(frames, 128, 128)
    sizes = {"stage_1": resize_and_crop(full, 64, 64), "stage_2": full}
    encoder = pipe.engines.video_encoder()
    return {stage: encoder.encode(to_vae_input(pixels)) for stage, pixels in sizes.items()}


def test_parts_in_time_and_images(
    pipe: TwoStageRetakePipeline, source: Path, encoded: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((70, 100, 3), (250, 10, 10), np.uint8)).save(path)
    clip = pipe(
        video=source,
        video_parts=(TimeWindow(start=0.4, end=0.45), TimeWindow(start=0, end=0.01)),
        audio_parts=(TimeWindow(start=0.2, end=0.3),),
        images=(ImageCondition(path=path, crf=0),),
        **FEW,
    )
    for stage, want in encoded.items():
        kept = is_kept(clip.latents[f"{stage}.video"], want)
        assert kept.shape == want.shape[2:]
        assert [bool(f.all()) for f in kept] == [False, True, False], stage
        assert not kept[[0, 2]].any()
    photo = image_to_vae_input(path, 128, 128, 0, (70, 100))
    shown = is_kept(
        clip.latents["stage_2.video"][:, :, :1], pipe.engines.video_encoder().encode(photo)
    )
    assert shown.all()
    sound = is_kept(clip.latents["stage_2.audio"], clip.latents["stage_1.audio"])
    assert np.flatnonzero(~sound).tolist() == [5, 6, 7, 8]  # refined where it was made
    clip.save(tmp_path / "out.mp4")
    info = probe_video(tmp_path / "out.mp4")
    assert (info.height, info.width, info.num_frames, info.has_audio) == (70, 100, 15, True)


def test_a_mask_in_tiles(
    pipe: TwoStageRetakePipeline, source: Path, encoded: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Stage 1 makes every large cell that white touches, stage 2 only the small ones."""
    pixels = np.zeros((70, 100), np.uint8)
    pixels[:30, 40:50] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    clip = pipe(
        video=source, mask=tmp_path / "mask.png", stage_2_tile="96x96", denoise_strength=0.5, **FEW
    )
    stages = clip.record.stages
    assert stages["stage_1"]["sigmas"] == [0.5, 0.0]
    tiles = [name for name in stages if name.startswith("stage_2_tile")]
    assert len(tiles) == 4
    assert stages[tiles[0]]["sigmas"] == [0.5, 0.0]
    small = np.zeros((2, 2), bool)
    small[0, 0] = True
    assert (is_kept(clip.latents["stage_1.video"], encoded["stage_1"]) == ~small).all()
    large = np.zeros((4, 4), bool)
    large[0, 1] = True
    assert (is_kept(clip.latents["stage_2.video"], encoded["stage_2"]) == ~large).all()
    assert clip.waveform is not None  # the sound is the source's


@pytest.mark.fuzz
def test_guided_ships_the_sound_of_stage_1(demo_bundle: Path, source: Path) -> None:
    """The demo model is distilled: stage 2 needs no LoRA."""
    runtime = RuntimeConfig(threads=1)
    with GuidedTwoStageRetakePipeline(open_bundle(demo_bundle), runtime) as pipe:
        clip = pipe(video=source, start_time=0.3, end_time=0.6, **FEW)
    assert clip.audio_latent is clip.latents["stage_1.audio"]
    assert clip.record.pipeline == "retake-two-stage-guided"


def test_from_the_command_line(demo_bundle: Path, tmp_path: Path) -> None:
    """A silent source stays silent where less than all of it is made anew."""
    silent = video_file(tmp_path / "silent.mp4", 9, 64, 64, sound=False)
    made = tmp_path / "a.mp4"
    outcome = run(
        "generate", demo_bundle, "--pipeline", "retake-two-stage", "--prompt", "a", "--video",
        silent, "--outpaint", "100x80", "--denoise-strength", 0.9, "--sigmas", 1, 0,
        "--stage-2-sigmas", 0.9, 0, "--threads", 1, "--quiet", "-o", made,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    info = probe_video(made)
    assert (info.width, info.height, info.has_audio) == (100, 80, False)
    record = record_in(made)
    assert (record.pipeline, record.request.inputs.outpaint) == ("retake-two-stage", "100x80")


def test_a_kept_picture_is_refused(demo_bundle: Path, source: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        outcome = run(
            "generate", demo_bundle, "--pipeline", "retake-two-stage", "--prompt", "a", "--video",
            source, "--start-time", 0, "--end-time", 1, "--no-regenerate-video", "-o",
            tmp_path / "x.mp4",
        )  # fmt: skip
        expect_user_error(outcome, "this one is kept (--no-regenerate-video)", "of one stage")
