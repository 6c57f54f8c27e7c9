"""A program as a user writes it: type checkers must know every name of it (`test_client.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

import ltx2rt


def progress(report: ltx2rt.Progress) -> None:
    assert_type(report.stage, str)
    assert_type(report.eta_s, float | None)


def make(folder: str) -> None:
    built: ltx2rt.Bundle = ltx2rt.build(folder, checkpoint="c.safetensors", card="rtx4090")
    print(built.folder)
    bundle = ltx2rt.open_bundle(folder)
    assert_type(bundle, ltx2rt.Bundle)
    job = ltx2rt.Job(on_progress=progress)
    config = ltx2rt.GenerationConfig(
        prompt="a lake",
        num_frames=ltx2rt.AutoDuration(min_s=2, max_s=8),
        images=(ltx2rt.ImageCondition(path=Path("a.png"), frame=8),),
        loras=(ltx2rt.Lora(path="l.safetensors", strength=0.5),),
    )
    schedule = ltx2rt.GuiderSchedule(bins={1.0: ltx2rt.GuiderParams(cfg_scale=3.0)})
    guidance = ltx2rt.GuidanceConfig(video_schedule=schedule)
    with ltx2rt.OneStagePipeline(bundle, ltx2rt.RuntimeConfig(threads=2)) as pipe:
        clip = pipe(config, guidance, job=job)
    assert_type(clip, ltx2rt.Clip)
    assert_type(clip.record, ltx2rt.Record)
    clip.save("out.mp4")
    assert_type(ltx2rt.record_in("out.mp4"), ltx2rt.Record)


def many(bundle: ltx2rt.Bundle) -> Iterator[ltx2rt.Clip]:
    reference = ltx2rt.ReferenceFile(path=Path("depth.mp4"), strength=1.0)
    yield ltx2rt.ICLoraPipeline(bundle)(inputs=ltx2rt.ICLoraInputs(references=(reference,)))
    yield ltx2rt.AudioToVideoPipeline(bundle)(prompt="a", audio=Path("talk.wav"))
    yield from ltx2rt.DistilledPipeline(bundle).generate_many([1, 2], prompt="a lake")
    with ltx2rt.RetakePipeline(bundle) as retake:
        yield from retake.generate_many(
            prompts=["rain", "snow"], num_videos=2, video="in.mp4", start_time=1
        )


def from_memory(bundle: ltx2rt.Bundle, photo: Image, samples: NDArray[np.float32]) -> None:
    with ltx2rt.DistilledPipeline(bundle) as pipe:
        clip = pipe(prompt="a", images=[photo, "last.png", b"..."], audio=(samples, 48_000))
    chunks: list[NDArray[np.uint8]] = list(clip.frames)
    condition = ltx2rt.ImageCondition(path=ltx2rt.image_file(photo), frame=8)
    sound = ltx2rt.sound_file(samples, 48_000)
    video = ltx2rt.video_file(chunks, clip.frame_rate, (clip.audio, clip.audio_sampling_rate))
    ltx2rt.RetakePipeline(bundle)(prompt="a", video=video, images=[condition], audio=sound)


async def streamed(clip: ltx2rt.Clip) -> None:
    async for chunk in clip.async_frames():
        assert_type(chunk, NDArray[np.uint8])


def errors() -> None:
    try:
        make("ltx23.bundle")
    except ltx2rt.Cancelled:
        print("cancelled")
    except (ltx2rt.BundleError, ltx2rt.ShapeError) as error:
        assert_type(error, ltx2rt.BundleError | ltx2rt.ShapeError)
    except ltx2rt.Ltx2rtError as error:
        print(error)


def misspelt(bundle: ltx2rt.Bundle) -> None:
    print(ltx2rt.__version__, ltx2rt.DistiledPipeline)  # type: ignore[attr-defined]
    pipe = ltx2rt.DistilledPipeline(bundle)
    pipe(promt="a lake")  # type: ignore[call-arg]
    pipe(prompt="a lake", seed="7")  # type: ignore[arg-type]
    pipe(prompt="a lake", video="in.mp4")  # type: ignore[call-arg]
    pipe.generate_many(prompts=["a"], nun_videos=2)  # type: ignore[call-arg]
    ltx2rt.RetakePipeline(bundle)(video="in.mp4", star_time=1)  # type: ignore[call-arg]
    ltx2rt.UpscalePipeline(bundle)(source="in.mp4", upscale="all")  # type: ignore[arg-type]
    ltx2rt.ICLoraPipeline(bundle)(inputs=ltx2rt.DubItInputs)  # type: ignore[arg-type]
