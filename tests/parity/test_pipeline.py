"""The Python API on the demo bundle: progress, cancelling, residency, frames, tiling."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.config import GenerationConfig, ImageCondition, RuntimeConfig
from ltx2rt.errors import InternalError, Ltx2rtError, OptionError, ShapeError
from ltx2rt.media.image import image_to_vae_input, to_vae_input
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.names import TEXT_STACK, TRANSFORMER_STACK
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Cancelled, Job, Progress
from ltx2rt.results.clip import Clip, truncated_uint8
from ltx2rt.results.prefetch import prefetch
from ltx2rt.results.record import record_in
from tests.parity.media_files import video_file
from tests.tolerances import TOLERANCES

LAYERS = 6  # of the demo model's Gemma
SMALL = GenerationConfig(prompt="a lake", seed=3, height=64, width=64, num_frames=9)
#: blended tiles against one pass. The padding at a tile's border reaches into the blended part: an
#: untrained network has wide, strong reach (measured 2e-2 over time, 6e-2 across, 2e-3 on average).
#: Away from the seam it is about one 8-bit step (measured 2.4e-3).
TILING_MAX, TILING_MEAN, TILING_FAR = 1e-1, 3e-3, 4e-3


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[DistilledPipeline]:
    runtime = RuntimeConfig(threads=1, residency="resident")
    with DistilledPipeline(open_bundle(demo_bundle), runtime) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def clip(pipe: DistilledPipeline) -> Clip:
    return pipe(SMALL)


def test_progress_of_every_step(pipe: DistilledPipeline) -> None:
    seen: list[Progress] = []
    job = Job(seen.append)
    clip = pipe(SMALL, job=job)
    assert clip.audio.shape[0] == 2
    list(clip.frames)
    steps = [(p.stage, p.step, p.total) for p in seen]
    assert steps == [
        *(("prompt", i, LAYERS) for i in range(LAYERS + 1)),
        *(("stage_1", i, 8) for i in range(9)),
        ("upsample", 0, 1), ("upsample", 1, 1),
        *(("stage_2", i, 3) for i in range(4)),
        ("decode audio", 0, 1), ("decode audio", 1, 1),
        ("decode video", 0, 1), ("decode video", 1, 1),
    ]  # fmt: skip
    assert job.timings_s.keys() == {stage for stage, _, _ in steps}
    assert all(p.eta_s is None for p in seen if p.step == 0)
    assert all(p.elapsed_s >= 0 for p in seen)


@pytest.mark.parametrize("stage", ["prompt", "stage_1", "upsample", "stage_2"])
def test_cancel_stops_at_the_next_step(pipe: DistilledPipeline, clip: Clip, stage: str) -> None:
    job = Job()
    seen: list[tuple[str, int]] = []

    def cancel(progress: Progress) -> None:
        seen.append((progress.stage, progress.step))
        if progress.stage == stage:
            job.cancel.set()

    job.on_progress = cancel
    with pytest.raises(Cancelled, match="cancelled in"):
        pipe(SMALL, job=job)
    assert [s for s, _ in seen].count(stage) == 1
    assert seen[-1] == (stage, 0)
    again = pipe(SMALL)  # the pipeline is as good as new
    np.testing.assert_array_equal(again.video_latent, clip.video_latent)


def test_cancel_while_decoding_leaves_no_file(clip: Clip, tmp_path: Path) -> None:
    job = Job()
    job.on_progress = lambda p: job.cancel.set() if p.stage == "decode video" else None
    with pytest.raises(Cancelled):
        dataclasses.replace(clip, job=job).save(tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name == "decode"]


def test_residency_changes_nothing_but_memory(
    demo_bundle: Path, pipe: DistilledPipeline, clip: Clip
) -> None:
    with DistilledPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as staged:
        other = staged(SMALL)
        assert not staged.engines._engines
        assert not staged.engines._stacks
        for name, latent in clip.latents.items():
            np.testing.assert_array_equal(other.latents[name], latent)
        other.audio  # noqa: B018
        assert not staged.engines._engines
        assert not staged.engines._stacks
        np.testing.assert_array_equal(
            np.concatenate(list(other.frames)), np.concatenate(list(clip.frames))
        )
        assert not staged.engines._engines
        assert not staged.engines._stacks
        again = staged(SMALL)  # engines load anew
        np.testing.assert_array_equal(again.video_latent, clip.video_latent)
    assert "spatial_upsampler" in pipe.engines._engines
    assert set(pipe.engines._stacks) == {TEXT_STACK, TRANSFORMER_STACK}


def test_keywords_are_a_config(pipe: DistilledPipeline, clip: Clip) -> None:
    same = pipe(prompt="a lake", seed=3, height=64, width=64, num_frames=9)
    np.testing.assert_array_equal(same.video_latent, clip.video_latent)


def test_frames_are_chunks_of_bytes(clip: Clip) -> None:
    chunks = list(clip.frames)
    assert all(c.dtype == np.uint8 and c.shape[1:] == (64, 64, 3) for c in chunks)
    frames = np.concatenate(chunks)
    assert len(frames) == 9
    floats = np.concatenate(list(clip.float_frames()))
    assert floats.dtype == np.float32
    assert 0 <= floats.min() < floats.max() <= 1
    np.testing.assert_array_equal(frames, truncated_uint8(floats))
    np.testing.assert_array_equal(np.concatenate(list(clip.frames)), frames)  # anew each time


def test_truncation_to_bytes() -> None:
    values = np.array([-1, 0, 0.999 / 255, 1 / 255, 0.5, 1, 2], np.float32)
    assert truncated_uint8(values).tolist() == [0, 0, 0, 1, 127, 255, 255]


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_image_pins_the_first_frame(
    pipe: DistilledPipeline, clip: Clip, tmp_path: Path, strength: float
) -> None:
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    image = ImageCondition(path=path, strength=strength, crf=0)
    shown = pipe(dataclasses.replace(SMALL, images=(image,)))
    assert np.abs(shown.video_latent - clip.video_latent).max() > 1e-3
    for stage, size in (("stage_1", 32), ("stage_2", 64)):
        want = pipe.engines.video_encoder().encode(image_to_vae_input(path, size, size, 0))
        got = shown.latents[f"{stage}.video"][:, :, :1]
        if strength == 1:
            bound = TOLERANCES["scalar"]
            np.testing.assert_allclose(got, want, atol=bound.atol, rtol=bound.rtol)
        else:
            assert np.abs(got - want).max() > 1e-3
    np.testing.assert_array_equal(shown.latents["stage_1.audio"].shape, (1, 8, 9, 16))


def test_keyframe_steers_without_changing_shapes(
    pipe: DistilledPipeline, clip: Clip, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(path)
    shown = pipe(dataclasses.replace(SMALL, images=(ImageCondition(path=path, frame=8),)))
    assert shown.video_latent.shape == clip.video_latent.shape
    assert np.abs(shown.video_latent - clip.video_latent).max() > 1e-4


@pytest.mark.parametrize(
    ("size", "axis", "same"),
    [((97, 64, 64), 0, 48), ((9, 64, 832), 2, 512)],
    ids=["two in time", "two across"],
)
def test_tiled_decoding_agrees_with_one_pass(
    pipe: DistilledPipeline, size: tuple[int, int, int], axis: int, same: int
) -> None:
    frames, height, width = size
    clip = pipe(dataclasses.replace(SMALL, num_frames=frames, height=height, width=width))
    config = dataclasses.replace(clip.config, tiling="none")
    record = dataclasses.replace(clip.record, request=Request(config=config))
    one = np.concatenate(list(dataclasses.replace(clip, record=record).float_frames()))
    reports: list[Progress] = []
    chunks = list(dataclasses.replace(clip, job=Job(reports.append)).float_frames())
    assert [(p.step, p.total) for p in reports] == [(0, 1), (1, 2), (2, 2)]
    assert len(chunks) == (2 if axis == 0 else 1)
    difference = np.abs(np.concatenate(chunks) - one)
    assert difference.shape == (*size, 3)
    assert 0 < difference.max() <= TILING_MAX
    assert difference.mean() <= TILING_MEAN
    before = difference.take(np.arange(same), axis=axis)  # far from the seam
    assert before.max() <= TILING_FAR


def test_bad_requests_come_before_work(pipe: DistilledPipeline) -> None:
    job = Job(lambda p: pytest.fail(f"started {p.stage}"))
    with pytest.raises(ShapeError, match=r"height=97 is not even. Nearest valid: 96, 98"):
        pipe(dataclasses.replace(SMALL, height=97), job=job)
    with pytest.raises(ShapeError, match=r"num_frames=8 is not 8k\+1. Nearest valid: 1, 9"):
        pipe(dataclasses.replace(SMALL, num_frames=8), job=job)
    with pytest.raises(OptionError, match="tiling='some'"):
        dataclasses.replace(SMALL, tiling="some")
    with pytest.raises(OptionError, match="residency='none'"):
        RuntimeConfig(residency="none")


def test_other_sizes_are_cut_out_of_what_the_model_renders(
    pipe: DistilledPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((54, 90, 3), (250, 120, 10), np.uint8)).save(path)
    images = (ImageCondition(path=path, crf=0),)
    cut = pipe(dataclasses.replace(SMALL, height=54, width=90, images=images))
    whole = pipe(dataclasses.replace(SMALL, height=64, width=128, images=images))
    assert (cut.num_frames, cut.height, cut.width) == (9, 54, 90)
    assert cut.rendered_size == (whole.height, whole.width) == (64, 128)
    # the image is of one colour, so that both are shown the same
    np.testing.assert_allclose(cut.video_latent, whole.video_latent, atol=1e-5)
    frames = [np.concatenate(list(c.float_frames())) for c in (cut, whole)]
    np.testing.assert_allclose(frames[0], frames[1][:, :54, :90], atol=1e-5)
    cut.save(tmp_path / "x.mp4")
    assert pipe(record_in(tmp_path / "x.mp4").request.config).height == 54


def test_a_picture_alone_runs_no_sound(pipe: DistilledPipeline, tmp_path: Path) -> None:
    shapes: list[object] = []
    transformer = pipe.engines.transformer()
    predict = type(transformer).__call__

    def watched(self: object, video: object, audio: object, *rest: object, **named: object) -> Any:
        shapes.append(audio)
        return predict(self, video, audio, *rest, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(transformer), "__call__", watched)
        clip = pipe(dataclasses.replace(SMALL, with_audio=False))
    assert len(shapes) == 11
    assert set(shapes) == {None}
    assert clip.latents.keys() == {"stage_1.video", "upsampled.video", "stage_2.video"}
    assert not clip.has_audio
    clip.save(tmp_path / "x.mp4")
    assert not probe_video(tmp_path / "x.mp4").has_audio
    with pytest.raises(OptionError, match="is sound for a clip that shall have none"):
        dataclasses.replace(SMALL, with_audio=False, audio=tmp_path / "a.wav")


@pytest.mark.parametrize("frame", [0, 8])
def test_an_image_may_be_a_short_video(pipe: DistilledPipeline, tmp_path: Path, frame: int) -> None:
    path = video_file(tmp_path / "x.mp4", 14, sound=False)
    shown = ImageCondition(path=path, frame=frame)
    clip = pipe(dataclasses.replace(SMALL, num_frames=25, images=(shown,)))
    if frame == 0:  # its first 9 frames, as they are
        pixels = to_vae_input(read_video_frames(path, 9).astype(np.float32))
        want = pipe.engines.video_encoder().encode(pixels)
        np.testing.assert_allclose(clip.latents["stage_2.video"][:, :, :2], want, atol=1e-4)
    else:
        alone = pipe(dataclasses.replace(SMALL, num_frames=25))
        assert np.abs(clip.latents["stage_2.video"] - alone.latents["stage_2.video"]).max() > 1e-4
    late = dataclasses.replace(shown, frame=23)
    with pytest.raises(OptionError, match="has 2 frames to show from frame 23 on"):
        pipe(dataclasses.replace(SMALL, num_frames=25, images=(late,)))


def test_stage_2_in_tiles(pipe: DistilledPipeline, tmp_path: Path) -> None:
    """Conditions are cut to the tiles, which cover the picture; the sound is that of stage 1."""
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 192, 3), np.uint8)).save(path)
    images = (ImageCondition(path=path, crf=0),)
    config = dataclasses.replace(SMALL, width=192, images=images)
    clip = pipe(dataclasses.replace(config, stage_2_tile="128x64"))
    tiles = [name for name in clip.record.stages if name.startswith("stage_2")]
    assert tiles == ["stage_2_tile_1", "stage_2_tile_2"]
    want = pipe.engines.video_encoder().encode(image_to_vae_input(path, 64, 192, 0))
    np.testing.assert_allclose(clip.video_latent[:, :, :1], want, atol=1e-5)
    parts = [clip.latents[f"{name}.video"] for name in tiles]
    assert [part.shape[4] for part in parts] == [4, 4]
    np.testing.assert_allclose(clip.video_latent[..., :2], parts[0][..., :2], atol=1e-6)
    np.testing.assert_allclose(clip.video_latent[..., 4:], parts[1][..., 2:], atol=1e-6)
    between = clip.video_latent[..., 2:4]
    low = np.minimum(parts[0][..., 2:], parts[1][..., :2])
    assert (between >= low - 1e-5).all()
    np.testing.assert_array_equal(clip.audio_latent, clip.latents["stage_1.audio"])
    whole = pipe(dataclasses.replace(config, stage_2_tile="4k"))
    assert [n for n in whole.record.stages if n.startswith("stage_2")] == ["stage_2_tile_1"]


def test_one_frame(pipe: DistilledPipeline, tmp_path: Path) -> None:
    clip = pipe(dataclasses.replace(SMALL, num_frames=1))
    assert clip.video_latent.shape == (1, 128, 1, 2, 2)
    clip.save(tmp_path / "x.mkv")
    assert (tmp_path / "x.mkv").stat().st_size > 0


def test_prefetch_hands_over_items_and_errors() -> None:
    arrays = [np.full(3, i) for i in range(7)]
    assert [a[0] for a in prefetch(iter(arrays))] == list(range(7))

    def broken() -> Iterator[np.ndarray]:
        yield arrays[0]
        raise InternalError("decoder")

    items = prefetch(broken())
    next(items)
    with pytest.raises(InternalError, match="decoder"):
        next(items)


def test_prefetch_stops_with_its_consumer() -> None:
    made = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            made.append(1)
            yield np.zeros(1)

    items = prefetch(endless(), depth=2)
    next(items)
    items.close()
    count = len(made)
    assert count <= 5  # two queued, one waiting, one taken, one begun
    assert not [t for t in threading.enumerate() if t.name == "decode"]
    assert len(made) == count


def test_cancelled_is_an_error_of_ours() -> None:
    assert issubclass(Cancelled, Ltx2rtError)
