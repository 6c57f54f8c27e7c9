"""What a clip looks like while it is sampled: colours of latents, in step with the sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.preview import fit_colours, read_colours
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.errors import UnsupportedError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.engines import Engines
from ltx2rt.progress import Job, Preview
from tests.parity.command_line import SMALL, expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run

CONFIG = GenerationConfig(
    prompt="a", seed=3, height=64, width=64, num_frames=9, sigmas=(1.0, 0.8, 0.5, 0.0),
    stage_2_sigmas=(0.9, 0.0),
)  # fmt: skip


class MeanEncoder(VideoEncoder):
    """An encoder whose cells hold a linear map of their mean colour, and noise."""

    def __init__(self) -> None:
        self.scale_factors = VIDEO_SCALE_FACTORS

    def encode(self, video: np.ndarray, tiling: object = None) -> np.ndarray:  # type: ignore[override]
        frames = video[:, :, ::8]
        _, _, count, height, width = frames.shape
        cells = frames.reshape(1, 3, count, height // 32, 32, width // 32, 32).mean((4, 6))
        mix = np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)
        latent = np.einsum("kc,bcfhw->bkfhw", mix, cells)
        noise = np.random.default_rng(2).standard_normal(latent.shape)
        return (latent + 0.05 * noise).astype(np.float32)


class SmallEncoder(MeanEncoder):
    """One that takes no more than 64 pixels a side, and at most so many frames."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def takes(self, frames: int, height: int, width: int) -> bool:
        return frames <= self.frames and max(height, width) <= 64

    def encode(self, video: np.ndarray, tiling: object = None) -> np.ndarray:  # type: ignore[override]
        assert video.shape[2] > 9 or self.takes(*video.shape[2:])  # the test's own is long
        return super().encode(video)


@pytest.mark.parametrize("frames", [None, 9, 1])
def test_colours_are_found_again(frames: int | None) -> None:
    """Also by encoders that take small clips, or images, only."""
    if frames is None:
        encoder = MeanEncoder()
        colours = fit_colours(encoder)
    else:
        encoder = small = SmallEncoder(frames)
        colours = fit_colours(small, small.takes)
    picture = np.array([[(230, 20, 20), (20, 200, 40)], [(30, 30, 240), (128, 128, 128)]], np.uint8)
    pixels = picture.repeat(32, 0).repeat(32, 1).astype(np.float32) / 127.5 - 1
    clip = np.repeat(np.moveaxis(pixels, -1, 0)[None, :, None], 17, axis=2)
    shown = colours(encoder.encode(clip))
    assert shown.shape == (3, 2, 2, 3)
    assert np.abs(shown.astype(float) - picture).max() < 25


def test_an_encoder_without_squares_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a square of up to 192x192 pixels"):
        fit_colours(MeanEncoder(), lambda *_: False)


def test_previews_come_with_the_steps_and_change_nothing(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path))
    seen: list[Preview] = []
    with DistilledPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        clip = pipe(CONFIG, job=Job(on_preview=seen.append, preview_every=2))
        plain = pipe(CONFIG)
        colours = pipe.engines.latent_colours()
    steps = [(p.stage, p.step, p.total) for p in seen]
    assert steps == [("stage_1", 2, 3), ("stage_1", 3, 3), ("stage_2", 1, 1)]
    assert [p.frames.shape for p in seen] == [(2, 1, 1, 3)] * 2 + [(2, 2, 2, 3)]
    assert {p.frame_rate for p in seen} == {3.0}
    np.testing.assert_array_equal(clip.video_latent, plain.video_latent)
    # the last estimate is the result
    np.testing.assert_array_equal(seen[-1].frames, colours(clip.latents["stage_2.video"]))
    # what was fitted is kept for the next program, and fitted again where it is damaged
    (kept,) = (tmp_path / "colours").iterdir()
    bundle = open_bundle(demo_bundle)
    with monkeypatch.context() as patch:
        patch.setattr(VideoEncoder, "encode", pytest.fail)
        again = Engines(bundle).latent_colours()
    np.testing.assert_array_equal(again.weights, colours.weights)
    for damaged in ("{", '{"weights": [[1]], "bias": [0, 0, 0]}', "[]"):
        kept.write_text(damaged)
        assert read_colours(kept) is None


def test_command(demo_bundle: Path, tmp_path: Path) -> None:
    name = "now.webp"
    outcome = run(
        "generate", demo_bundle, "--prompt", "a", *SMALL, "--sigmas", 1, 0.5, 0, "--stage-2-sigmas",
        0.9, 0, "--preview", tmp_path / name, "-o", tmp_path / "x.mp4", "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / name) as image:
        assert (image.n_frames, image.size) == (2, (16, 16))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--preview", "x.mp4"), "the extension '.mp4' is not allowed here"),
        (("--preview", "none/x.gif"), "does not exist"),
        (("--preview", "x.gif", "--preview-every", 0), "--preview-every=0 is less than 1"),
    ],
)
def test_wrong_previews(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path):
        outcome = run("generate", demo_bundle, "--prompt", "a", *SMALL, *flags, "-o", "y.mp4")
        expect_user_error(outcome, part)
