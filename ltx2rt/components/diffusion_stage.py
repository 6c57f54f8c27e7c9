"""One denoising stage: states, noise, sampler and model tied together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.denoisers import Guidance, GuidedDenoiser, simple_denoise
from ltx2rt.components.prompt_encoder import TextContext
from ltx2rt.components.stage_trace import StageTrace, StageTracer, entry_tensors
from ltx2rt.components.transformer import Transformer
from ltx2rt.conditioning import ConditioningItem, apply_items
from ltx2rt.engine import Array
from ltx2rt.latent_state import (
    LatentState,
    freeze,
    make_audio_state,
    make_video_state,
    slot_latents,
    target_latent,
)
from ltx2rt.noise import TorchGenerator
from ltx2rt.progress import Job
from ltx2rt.res_2s import STEP_SEED, SUBSTEP_SEED, normalised_noise_source, sample_res_2s
from ltx2rt.sampling import (
    Denoise,
    OnStep,
    States,
    add_noise,
    sample_euler,
    sample_euler_ancestral,
)
from ltx2rt.schedules import sigma_table
from ltx2rt.shapes import AudioLatentShape, VideoLatentShape, VideoPixelShape, VideoScaleFactors

#: seed of the ancestral sampler's own generator, relative to the pipeline's (spec/sampling.md §5.3)
ANCESTRAL_SEED_OFFSET = 10000


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """What one stage does.

    Attributes:
        name: `stage_1`, `stage_2`: names progress lines and saved latents.
        pixels: size and duration at this stage.
        video_shape, audio_shape: latents to generate.
        scale_factors: pixels per latent cell.
        sigmas: noise levels, ending in 0.
        video_initial, audio_initial: latents to start from; None starts from pure noise.
        noise_scale: 1, or the first sigma when refining an initial latent.
        items: conditioning of the video, in order.
        audio_noise_scale: the same for the audio, where it differs.
        audio_frozen: the audio is finished context: it is shown to the video and not changed.
        sampler: how steps are taken.
        ancestral_seed: seed of the ancestral sampler's own noise.
    """

    name: str
    pixels: VideoPixelShape
    video_shape: VideoLatentShape
    audio_shape: AudioLatentShape
    scale_factors: VideoScaleFactors
    sigmas: Sequence[float]
    video_initial: Array | None = None
    audio_initial: Array | None = None
    noise_scale: float = 1.0
    items: Sequence[ConditioningItem] = ()
    audio_noise_scale: float | None = None
    audio_frozen: bool = False
    sampler: Literal["euler", "euler_ancestral", "res_2s"] = "euler"
    ancestral_seed: int = 0


def run_stage(
    request: StageRequest,
    transformer: Transformer,
    context: TextContext,
    generator: TorchGenerator,
    job: Job,
    trace: StageTrace | None = None,
    guidance: Guidance | None = None,
) -> tuple[Array, Array]:
    """Denoise video and audio together, guided or (without `guidance`) with one pass a step.

    Draws the video noise, then the audio noise from `generator` (spec/sampling.md §8).

    Returns:
        video latent `[1, C, F, H, W]` and audio latent `[1, z, T, bins]`, float32.
    """
    video, audio, _ = run_stage_with_keyframes(
        request, transformer, context, generator, job, trace, guidance
    )
    return video, audio


def run_stage_with_keyframes(
    request: StageRequest,
    transformer: Transformer,
    context: TextContext,
    generator: TorchGenerator,
    job: Job,
    trace: StageTrace | None = None,
    guidance: Guidance | None = None,
) -> tuple[Array, Array, Array | None]:
    """As `run_stage`, with the generated keyframes `[1, C, K, H, W]`, or None, as third result."""
    video = make_video_state(
        request.video_shape,
        request.pixels.frame_rate,
        request.video_initial,
        scale_factors=request.scale_factors,
    )
    video = apply_items(video, request.items)
    audio = make_audio_state(request.audio_shape, request.audio_initial)
    video_noise = generator.randn(video.latent.shape)
    audio_noise = generator.randn(audio.latent.shape)
    video = add_noise(video, video_noise, request.noise_scale)
    audio_scale = request.audio_noise_scale
    audio = add_noise(
        audio, audio_noise, request.noise_scale if audio_scale is None else audio_scale
    )
    if request.audio_frozen:
        audio = freeze(audio)
    if trace is not None:
        trace.tensors.update(entry_tensors(request.name, video, audio, video_noise, audio_noise))
    sigmas = sigma_table(request.sigmas)
    steps = len(sigmas) - 1
    job.report(request.name, 0, steps)

    def on_step(index: int, _video: LatentState | None, _audio: LatentState | None) -> None:
        job.report(request.name, index + 1, steps)

    tracer = None
    if trace is not None:
        tracer = StageTracer(request.name, trace)
        trace.tensors[f"{request.name}.sigmas"] = sigmas
    denoise: Denoise
    if guidance is None:
        denoise = simple_denoise(transformer, video, audio, context)
    else:
        on_passes = None if tracer is None else tracer.on_passes
        denoise = GuidedDenoiser(transformer, video, audio, context, guidance, on_passes)
    if tracer is not None:
        denoise = tracer.denoise(denoise)
    final_video, final_audio = _sample(request, denoise, video, audio, sigmas, tracer, on_step)
    assert final_video is not None
    assert final_audio is not None
    return target_latent(final_video), target_latent(final_audio), slot_latents(final_video)


def _sample(
    request: StageRequest,
    denoise: Denoise,
    video: LatentState,
    audio: LatentState,
    sigmas: NDArray[np.float32],
    tracer: StageTracer | None,
    on_step: OnStep,
) -> States:
    if request.sampler == "euler":
        return sample_euler(denoise, video, audio, sigmas, on_step=on_step)
    if request.sampler == "euler_ancestral":
        draws = TorchGenerator(request.ancestral_seed)
        return sample_euler_ancestral(denoise, video, audio, sigmas, draws.randn, on_step=on_step)
    step, substep = (normalised_noise_source(seed) for seed in (STEP_SEED, SUBSTEP_SEED))
    if tracer is not None:
        step, substep = tracer.draw(step), tracer.draw(substep)
    return sample_res_2s(
        denoise, video, audio, sigmas, step, substep, dtype=video.dtype, on_step=on_step
    )
