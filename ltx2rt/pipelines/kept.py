"""Latents that a file holds, decoded: with other tiles, to another output, or of another stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.source import ModelSource
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.names import DIFFUSION_DECODER
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.decoding import chosen_tiling, decode_audio, decode_video
from ltx2rt.progress import Job
from ltx2rt.results.clip import Clip
from ltx2rt.results.latent_file import DECODE, LatentFile
from ltx2rt.sampling.gpu_noise import make_generator


@contextmanager
def open_latents(
    source: Bundle | ModelSource,
    path: str | Path,
    *,
    stage: str | None = None,
    tiling: str | None = None,
    frame_rate: float | None = None,
    runtime: RuntimeConfig | None = None,
    job: Job | None = None,
) -> Iterator[Clip]:
    """The clip of a file of latents (`Clip.save_latents`); it can be decoded inside the block.

    ```python
    clip.save_latents("a.safetensors")
    with ltx2rt.open_latents(bundle, "a.safetensors", tiling="64x16:32x8") as again:
        again.save("again.mp4")
    ```

    Args:
        source: an opened bundle of the model that made them.
        path: the file.
        stage: decode the latents of this stage, such as `stage_1`; default: those of the clip.
        tiling: of the decoder, as `GenerationConfig.tiling`; default: the clip's.
        frame_rate: of latents that a trainer keeps, whose files do not say it; default: 24.
        runtime: how to run.
        job: progress, cancelling and timings.

    Raises:
        CheckpointError, OptionError: the file is no such file, or has no such stage.
        ShapeError: the tiling does not fit the model.
    """
    file = LatentFile(Path(path))
    if frame_rate is not None and not file.is_cache:
        raise OptionError(
            f"{path} says its frame rate, which is {file.finish.frame_rate:g}; leave it out."
        )
    video, audio, crop = file.finish.video, file.finish.audio, file.finish.crop
    if stage is not None:
        if stage not in file.stages:
            raise OptionError(
                f"{path} holds no latents of {stage}; it has {', '.join(file.stages)}."
            )
        names = (f"{stage}.{part}" for part in ("video", "audio"))
        video, audio = (name if file.sizes(name) else None for name in names)
        crop = None
    request = file.record.request
    named: dict[str, Any] = {"tiling": tiling, "frame_rate": frame_rate}
    if changed := {name: value for name, value in named.items() if value is not None}:
        config = dataclasses.replace(request.config, **changed)
        request = dataclasses.replace(request, config=config)
    with pipeline_class(file.record.pipeline)(source, runtime) as pipe:
        latent = file.read(video) if video else None
        if latent is not None:
            if not pipe.source.has(*DIFFUSION_DECODER):
                TilingConfig.parse(request.config.tiling).check(pipe.scale_factors)
            chosen = chosen_tiling(pipe.source, request.config.tiling, latent.shape[2:])
            config = dataclasses.replace(request.config, tiling=chosen)
            request = dataclasses.replace(request, config=config)
        generator = make_generator(request.config.seed, request.config.noise)
        if (state := file.generator(DECODE)) is not None:
            generator.state = state
        finish = file.finish
        yield pipe.clip_class(request)(
            record=dataclasses.replace(file.record, request=request),
            job=job or Job(),
            latents={},
            video_latent=latent,
            audio_latent=file.read(audio) if audio else None,
            decode_video=partial(decode_video, pipe.engines, generator),
            decode_audio=partial(decode_audio, pipe.engines),
            scale_factors=pipe.scale_factors,
            sampling_rate=pipe.source.model.audio_sampling_rate,
            frame_rate=finish.frame_rate if frame_rate is None else frame_rate,
            waveform=(file.read("sound"), finish.sound_rate) if finish.sound_rate else None,
            crop=crop,
            frame_step=finish.frame_step,
            cut_audio=finish.cut_audio,
            hdr=finish.hdr,
            sound_is_apart=pipe.engines.sound_is_apart,
        )
