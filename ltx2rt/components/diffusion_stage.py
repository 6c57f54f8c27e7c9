"""One denoising stage: states, noise, sampler and model tied together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ltx2rt.components.prompt_encoder import TextContext
from ltx2rt.components.transformer import ModalityInput, Transformer
from ltx2rt.conditioning import ConditioningItem, apply_items
from ltx2rt.engine import Array
from ltx2rt.latent_state import LatentState, make_audio_state, make_video_state, target_latent
from ltx2rt.noise import TorchGenerator
from ltx2rt.progress import Job
from ltx2rt.sampling import (
    Denoise,
    Sigma,
    add_noise,
    modality_sigma,
    sample_euler,
    sample_euler_ancestral,
    to_denoised,
    token_timesteps,
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
        ancestral_seed: seed of the ancestral sampler's noise; None samples with plain Euler.
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
    ancestral_seed: int | None = None


@dataclass(slots=True)
class StageTrace:
    """Called-back tensors of a stage, for parity tests: every name is as in the golden files."""

    tensors: dict[str, Array] = field(default_factory=dict)


def run_stage(
    request: StageRequest,
    transformer: Transformer,
    context: TextContext,
    generator: TorchGenerator,
    job: Job,
    trace: StageTrace | None = None,
) -> tuple[Array, Array]:
    """Denoise video and audio together with one prompt and no guidance.

    Draws the video noise, then the audio noise from `generator` (spec/sampling.md §8).

    Returns:
        video latent `[1, C, F, H, W]` and audio latent `[1, z, T, bins]`, float32.
    """
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
    audio = add_noise(audio, audio_noise, request.noise_scale)
    if trace is not None:
        trace.tensors.update(_entry_tensors(request.name, video, audio, video_noise, audio_noise))
    sigmas = sigma_table(request.sigmas)
    steps = len(sigmas) - 1
    job.report(request.name, 0, steps)

    def on_step(index: int, _video: LatentState | None, _audio: LatentState | None) -> None:
        job.report(request.name, index + 1, steps)

    denoise = simple_denoise(transformer, video, audio, context)
    if request.ancestral_seed is None:
        done = sample_euler(denoise, video, audio, sigmas, on_step=on_step)
    else:
        draws = TorchGenerator(request.ancestral_seed)
        done = sample_euler_ancestral(denoise, video, audio, sigmas, draws.randn, on_step=on_step)
    final_video, final_audio = done
    assert final_video is not None
    assert final_audio is not None
    return target_latent(final_video), target_latent(final_audio)


def simple_denoise(
    transformer: Transformer, video: LatentState, audio: LatentState, context: TextContext
) -> Denoise:
    """One forward pass with the positive contexts: the denoiser of every distilled stage."""

    def denoise(
        video_latent: Array | None, audio_latent: Array | None, sigma: Sigma, _index: int
    ) -> tuple[Array | None, Array | None]:
        assert video_latent is not None
        assert audio_latent is not None
        video_input = modality_input(video, video_latent, sigma, context.video)
        audio_input = modality_input(audio, audio_latent, sigma, context.audio)
        video_velocity, audio_velocity = transformer(video_input, audio_input)
        assert video_velocity is not None
        assert audio_velocity is not None
        return (
            to_denoised(video_latent, video_velocity, video_input.timesteps),
            to_denoised(audio_latent, audio_velocity, audio_input.timesteps),
        )

    return denoise


def modality_input(
    state: LatentState, latent: Array, sigma: Sigma, context: Array
) -> ModalityInput:
    """The transformer's view of a state at one noise level."""
    batch = latent.shape[0]
    return ModalityInput(
        latent=latent,
        sigma=np.full((batch,), modality_sigma(state, sigma), np.float32),
        timesteps=token_timesteps(state, sigma),
        positions=state.positions,
        context=context,
        attention_mask=state.attention_mask,
        keyframes_mask=state.keyframes_mask,
    )


def _entry_tensors(
    stage: str, video: LatentState, audio: LatentState, video_noise: Array, audio_noise: Array
) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for name, state, noise in (("video", video, video_noise), ("audio", audio, audio_noise)):
        tensors[f"{stage}.{name}.noise"] = noise
        tensors[f"{stage}.{name}.x0"] = state.latent
        tensors[f"{stage}.{name}.mask"] = state.mask
        tensors[f"{stage}.{name}.positions"] = state.positions
    return tensors
