"""Every way to make a clip from clips, on the tiny models of LTX-2.5 and, when asked for, LTX-2;
other tests do so with LTX-2.3. They are skipped where the golden directory lacks a model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.components import preview
from ltx2rt.config import GenerationConfig, NeighbourClip, RuntimeConfig
from ltx2rt.media.image import to_vae_input
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.kept import open_latents
from ltx2rt.pipelines.long import Segment, make_long
from ltx2rt.pipelines.retake import RetakePipeline
from ltx2rt.pipelines.retake_inputs import RetakeInputs, TimeWindow
from ltx2rt.pipelines.retake_two import TwoStageRetakePipeline
from ltx2rt.progress import Job, Preview
from tests.parity.golden import Runner, Skip, golden_root
from tests.parity.media_files import video_file
from tests.parity.pipeline_source import ComponentSource, find_model

RUNTIME = RuntimeConfig(threads=1, residency="resident")
SHORT = {
    "prompt": "a", "seed": 3, "sigmas": (1.0, 0.6, 0.0), "stage_2_sigmas": (0.9, 0.0),
    "tiling": "none",
}  # fmt: skip
SIZE = {"height": 64, "width": 64, "num_frames": 9}


@cache
def model(generation: str) -> ComponentSource:
    root = golden_root()
    if root is None:
        pytest.skip("no golden directory")
    try:
        runner = Runner(root, "torch")
        return ComponentSource(find_model(generation, runner, conv_decoder=True), runner)
    except Skip as skip:
        pytest.skip(str(skip))


@pytest.fixture(params=["2.5", pytest.param("2", marks=pytest.mark.fuzz)])
def source(request: pytest.FixtureRequest) -> ComponentSource:
    return model(request.param)


def test_going_on_from_a_clip(source: ComponentSource, tmp_path: Path) -> None:
    near = NeighbourClip(path=video_file(tmp_path / "a.mp4", 17, 64, 64), frames=9)
    with DistilledPipeline(source, RUNTIME) as pipe:
        clip = pipe(**SHORT, after=near, num_frames=17)
        encoder = pipe.engines.video_encoder()
        want = encoder.encode(to_vae_input(read_video_frames(near.path)[-9:]))
        np.testing.assert_allclose(clip.latents["stage_2.video"][:, :, :2], want, atol=1e-4)
        assert clip.latents["stage_2.video"][:, :, 2:].std() > 0.01
        clip.save(tmp_path / "b.mp4", joined=True)
    assert probe_video(tmp_path / "b.mp4").num_frames == 17 + 17 - 9


def test_a_long_clip(source: ComponentSource, tmp_path: Path) -> None:
    configs = [GenerationConfig(**SIZE | SHORT | {"num_frames": 25, "seed": s}) for s in (1, 2)]
    segments = [Segment(config=config) for config in configs]
    made = make_long(
        source, segments, tmp_path / "a.mp4", tmp_path / "w", overlap=9, runtime=RUNTIME
    )
    assert made == probe_video(tmp_path / "a.mp4").num_frames == 25 + 25 - 9


def test_a_part_a_mask_and_a_strength(source: ComponentSource, tmp_path: Path) -> None:
    """What is kept is the source's latent."""
    clip = video_file(tmp_path / "a.mp4", 17, 64, 64)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255
    mask = tmp_path / "right.png"
    Image.fromarray(picture).save(mask)
    options = {k: v for k, v in SHORT.items() if not k.startswith("stage_2")}
    late = TimeWindow(start=0.5, end=0.7)
    with RetakePipeline(source, RUNTIME) as pipe:
        encoder = pipe.engines.video_encoder()
        want = encoder.encode(to_vae_input(read_video_frames(clip)))

        def remade(**inputs: Any) -> np.ndarray:
            made = pipe(**options, inputs=RetakeInputs(video=clip, **inputs))
            return np.abs(made.latents["stage_1.video"] - want)[0].max(0)  # `[F, h, w]`

        in_time = remade(video_parts=(late,))
        assert in_time[:2].max() < 1e-4 < in_time[2].min()
        in_space = remade(mask=mask)
        assert in_space[:, :, 0].max() < 1e-4 < in_space[:, :, 1].min()
        weak, whole = remade(denoise_strength=0.2), remade(start_time=0.0, end_time=1.0)
        assert 0 < weak.mean() < 0.8 * whole.mean()  # also with noise levels of the user's


@pytest.mark.fuzz
def test_a_part_of_a_large_clip(source: ComponentSource, tmp_path: Path) -> None:
    """Made at half size, refined where it was made; the rest is the source's own."""
    clip = video_file(tmp_path / "a.mp4", 17, 64, 128)
    late = (TimeWindow(start=0.5, end=0.7),)
    with TwoStageRetakePipeline(source, RUNTIME) as pipe:
        want = pipe.engines.video_encoder().encode(to_vae_input(read_video_frames(clip)))
        made = pipe(**SHORT, inputs=RetakeInputs(video=clip, video_parts=late, audio_parts=late))
        made.save(tmp_path / "b.mp4")
    assert made.latents["stage_1.video"].shape[2:] == (3, 1, 2)
    apart = np.abs(made.latents["stage_2.video"] - want)[0].max(0)
    assert apart[:2].max() < 1e-4 < apart[2].min()
    assert probe_video(tmp_path / "b.mp4").has_audio


def test_latents_and_previews(
    source: ComponentSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "SAMPLES", 1)  # a map of one clip is as wide as one of all
    seen: list[Preview] = []
    kept = tmp_path / "a.safetensors"
    with DistilledPipeline(source, RUNTIME) as pipe:
        clip = pipe(**SIZE, **SHORT, job=Job(on_preview=seen.append))
        clip.save_latents(kept)
        frames = np.concatenate(list(clip.frames))
        again = pipe(**SIZE, **SHORT, latents=kept)
        np.testing.assert_array_equal(again.latents["stage_2.video"], clip.latents["stage_2.video"])
    assert [(p.stage, p.step) for p in seen] == [("stage_1", 1), ("stage_1", 2), ("stage_2", 1)]
    assert seen[-1].frames.shape == (2, 2, 2, 3)
    with open_latents(source, kept, runtime=RUNTIME) as opened:
        np.testing.assert_array_equal(np.concatenate(list(opened.frames)), frames)
