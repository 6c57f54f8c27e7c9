"""One denoising stage: states, noise, sampler and model tied together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.denoisers import Guidance, GuidedDenoiser, simple_denoise, step_costs
from ltx2rt.components.device_sampling import reason_against, sample_on_device
from ltx2rt.components.finite import check_finite, not_finite
from ltx2rt.components.identity import identity_denoise
from ltx2rt.components.preview import LatentColours
from ltx2rt.components.stage_trace import StageTrace, StageTracer, entry_tensors
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.transformer import Transformer
from ltx2rt.engine import Array
from ltx2rt.latents.conditioning import ConditioningItem, apply_items
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape, VideoScaleFactors
from ltx2rt.latents.state import (
    LatentState,
    freeze,
    make_audio_state,
    make_video_state,
    slot_latents,
    target_latent,
)
from ltx2rt.latents.streams import Streams
from ltx2rt.progress import Job, Preview
from ltx2rt.sampling.gpu_noise import CPU, Generator, make_generator
from ltx2rt.sampling.res_2s import (
    STEP_SEED,
    SUBSTEP_SEED,
    Res2s,
    normalised_noise_source,
    sample_res_2s,
)
from ltx2rt.sampling.samplers import (
    Denoise,
    OnStep,
    Sigma,
    States,
    add_noise,
    post_process,
    sample_euler,
    sample_euler_ancestral,
    sample_euler_cfg_pp,
    sample_gradient_estimation,
)
from ltx2rt.sampling.samplers import Sampler as Sampler
from ltx2rt.sampling.schedules import begun_at, sigma_table

Shape = TypeVar("Shape", VideoLatentShape, AudioLatentShape)

#: seed of the ancestral sampler's own generator, relative to the pipeline's (spec/sampling.md §5.3)
ANCESTRAL_SEED_OFFSET = 10000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModalityRequest(Generic[Shape]):
    """What one stage does with one modality.

    Attributes:
        shape: the latent to generate.
        initial: latent of that shape to start from; None starts from zeros.
        noise_scale: 1 starts from pure noise; the first sigma refines `initial`; 0 adds none.
        items: conditioning, in order.
        frozen: it is finished context: shown to the other modality, not changed. It is noised
            first, so a frozen modality that shall be clean needs a `noise_scale` of 0.
    """

    shape: Shape
    initial: Array | None = None
    noise_scale: float = 1.0
    items: Sequence[ConditioningItem] = ()
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class StageOverrides:
    """What the user wants of a stage, in place of what the pipeline says; None leaves it.

    Attributes:
        sampler: how steps are taken, with noise of its own from `ancestral_seed`.
        sigmas: noise levels. A modality that refines a latent from the pipeline's first level does
            so from the first of these.
    """

    sampler: Sampler | None
    sigmas: Sequence[float] | None
    ancestral_seed: int

    def begun_at(self, strength: float) -> StageOverrides:
        """Those noise levels from `strength` on."""
        if self.sigmas is None:
            return self
        return replace(self, sigmas=begun_at(strength, self.sigmas))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageRequest:
    """What one stage does.

    Attributes:
        name: `stage_1`, `stage_2`, ...: names progress lines and saved latents.
        sigmas: noise levels, ending in 0.
        frame_rate: pixel frames per second.
        scale_factors: pixels per latent cell.
        video, audio: what to do with each modality; None leaves it out (one at least is given).
        sampler: how steps are taken.
        ancestral_seed, ancestral_eta: the own noise of the ancestral sampler and of CFG++.
        noise: whose generator draws the own noise of samplers; see `GenerationConfig`.
        overrides: what the user wants of this stage; None: the stage has its own ways.
    """

    name: str
    sigmas: Sequence[float]
    frame_rate: float
    scale_factors: VideoScaleFactors
    video: ModalityRequest[VideoLatentShape] | None = None
    audio: ModalityRequest[AudioLatentShape] | None = None
    sampler: Sampler = "euler"
    ancestral_seed: int = 0
    ancestral_eta: float = 1.0
    noise: str = CPU
    overrides: StageOverrides | None = None

    def overridden(self) -> StageRequest:
        """The request as the user wants it, without overrides."""
        asked, request = self.overrides, replace(self, overrides=None)
        if asked is None:
            return request
        if asked.sampler is not None:
            request = replace(request, sampler=asked.sampler, ancestral_seed=asked.ancestral_seed)
        if asked.sigmas is None:
            return request
        first, start = self.sigmas[0], asked.sigmas[0]
        return replace(
            request,
            sigmas=asked.sigmas,
            video=_restarted(request.video, first, start),
            audio=_restarted(request.audio, first, start),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageResult:
    """Latents as they leave a stage, float32; None for what the stage did not have.

    Attributes:
        video: `[1, C, F, H, W]`.
        audio: `[1, z, T, bins]`.
        keyframes: generated keyframes `[1, C, K, H, W]`, one latent frame each.
    """

    video: Array | None
    audio: Array | None
    keyframes: Array | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """What there is, by name."""
        parts = {"video": self.video, "audio": self.audio, "keyframes": self.keyframes}
        return {name: array for name, array in parts.items() if array is not None}


def _restarted(
    modality: ModalityRequest[Shape] | None, first: float, start: float
) -> ModalityRequest[Shape] | None:
    """A modality that refines a latent from noise level `first`, to do so from `start`."""
    if modality is None or modality.initial is None or modality.noise_scale != first:
        return modality
    return replace(modality, noise_scale=start)


def run_stage(
    request: StageRequest,
    transformer: Transformer,
    context: TextContext,
    generator: Generator,
    job: Job,
    trace: StageTrace | None = None,
    guidance: Guidance | None = None,
    colours: LatentColours | None = None,
    identity: float = 0.0,
    *,
    allow_nan: bool = False,
) -> StageResult:
    """Denoise video and audio together, guided or (without `guidance`) with one pass a step.

    Draws the video noise, then the audio noise from `generator` (spec/sampling.md §8). `colours`
    makes previews for the job; `identity` is the scale of identity guidance.

    Raises:
        EngineError: a step gave NaN or infinity, unless `allow_nan`.
    """
    asked = Streams[ModalityRequest[Any]](request.video, request.audio)
    fresh = fresh_states(request)
    noises = fresh.map(lambda state: generator.randn(state.latent.shape))
    states = fresh.map(_started, noises, asked)
    sigmas = sigma_table(request.sigmas)
    steps = len(sigmas) - 1
    modalities = [name for name, _ in states.items()]
    midpoints = request.sampler == "res_2s"
    costs = step_costs(guidance, modalities, sigmas, midpoints=midpoints)
    job.report(request.name, 0, steps, costs=costs)

    def on_step(index: int, now: States) -> None:
        latents = {f"the {modality} latent": state.latent for modality, state in now.items()}
        where = f"{request.name}, step {index + 1} of {steps}"
        check_finite(where, latents, allowed=allow_nan)
        job.report(request.name, index + 1, steps)

    def on_device_step(index: int, bad: Mapping[str, int]) -> None:
        found = [f"the {modality} latent" for modality, count in bad.items() if count]
        if found and not allow_nan:
            raise not_finite(f"{request.name}, step {index + 1} of {steps}", " and ".join(found))
        job.report(request.name, index + 1, steps)

    tracer = None
    if trace is not None:
        tracer = StageTracer(request.name, trace)
        trace.tensors.update(entry_tensors(request.name, states, noises))
        trace.tensors[f"{request.name}.sigmas"] = sigmas
    looks_at = _looks_at(trace, colours, identity)
    against = reason_against(transformer, states, guidance, request.sampler, looks_at=looks_at)
    if against is not None and transformer.is_on_device:
        job.on_host(request.name, against, steps)
    denoise: Denoise
    unconditional: Mapping[str, Array] = {}
    if guidance is None:
        denoise = simple_denoise(transformer, states, context)
    else:
        on_passes = None if tracer is None else tracer.on_passes
        denoise = GuidedDenoiser(transformer, states, context, guidance, on_passes)
        unconditional = denoise.unconditional
    if identity:
        denoise = identity_denoise(
            denoise, transformer, states, context, identity, guided=guidance is not None
        )
    if tracer is not None:
        denoise = tracer.denoise(denoise)
    if colours is not None and states.video is not None:
        denoise = _previewed(denoise, request, states.video, steps, job, colours)
    with transformer.stage():
        if against is None:
            final = sample_on_device(
                transformer,
                states,
                context,
                guidance,
                request.sampler,
                sigmas,
                make_generator(request.ancestral_seed, request.noise).randn,
                request.ancestral_eta,
                on_device_step,
            )
        else:
            final = _sample(request, denoise, unconditional, states, sigmas, tracer, on_step)
    video, audio = final.map(target_latent)
    keyframes = None if final.video is None else slot_latents(final.video)
    result = StageResult(video=video, audio=audio, keyframes=keyframes)
    named = {f"the {name} latent": array for name, array in result.arrays.items()}
    check_finite(f"{request.name}, step {steps} of {steps}", named, allowed=allow_nan)
    return result


def _looks_at(
    trace: StageTrace | None, colours: LatentColours | None, identity: float
) -> str | None:
    """What wants the numbers of every step."""
    found = [(trace, "a trace of tensors"), (colours, "a preview"), (identity, "identity guidance")]
    return next((what for value, what in found if value), None)


def fresh_states(request: StageRequest) -> Streams[LatentState]:
    """The latents of a stage with their conditioning, before noise."""
    return Streams(_video_state(request), _audio_state(request))


def _previewed(
    inner: Denoise,
    request: StageRequest,
    state: LatentState,
    steps: int,
    job: Job,
    colours: LatentColours,
) -> Denoise:
    """`inner`, whose estimates the job is shown: the last one of each step that is due."""

    def shown(latents: Streams[Array], sigma: Sigma, index: int) -> Streams[Array]:
        predictions = inner(latents, sigma, index)
        due = (index + 1) % job.preview_every == 0 or index + 1 == steps
        if job.on_preview is not None and predictions.video is not None and due:
            clean = replace(state, latent=post_process(predictions.video, state))
            frame_rate = request.frame_rate / request.scale_factors.time
            frames = colours(target_latent(clean))
            job.on_preview(Preview(request.name, index + 1, steps, frames, frame_rate))
        return predictions

    return shown


def _video_state(request: StageRequest) -> LatentState | None:
    video = request.video
    if video is None:
        return None
    state = make_video_state(
        video.shape, request.frame_rate, video.initial, scale_factors=request.scale_factors
    )
    return apply_items(state, video.items)


def _audio_state(request: StageRequest) -> LatentState | None:
    audio = request.audio
    if audio is None:
        return None
    return apply_items(make_audio_state(audio.shape, audio.initial), audio.items)


def _started(state: LatentState, noise: Array, request: ModalityRequest[Any]) -> LatentState:
    """The state that enters the loop."""
    noised = add_noise(state, noise, request.noise_scale)
    return freeze(noised) if request.frozen else noised


def _sample(
    request: StageRequest,
    denoise: Denoise,
    unconditional: Mapping[str, Array],
    states: States,
    sigmas: NDArray[np.float32],
    tracer: StageTracer | None,
    on_step: OnStep,
) -> States:
    own = make_generator(request.ancestral_seed, request.noise)
    draw, eta = own.randn, request.ancestral_eta
    match request.sampler:
        case "euler":
            return sample_euler(denoise, states, sigmas, on_step=on_step)
        case "gradient_estimation":
            return sample_gradient_estimation(denoise, states, sigmas, on_step=on_step)
        case "euler_ancestral":
            return sample_euler_ancestral(denoise, states, sigmas, draw, eta=eta, on_step=on_step)
        case "cfg_pp":
            return sample_euler_cfg_pp(
                denoise, unconditional.__getitem__, states, sigmas, draw, eta=eta, on_step=on_step
            )
        case "res_2s":
            step, substep = (
                normalised_noise_source(make_generator(seed, request.noise))
                for seed in (STEP_SEED, SUBSTEP_SEED)
            )
            if tracer is not None:
                step, substep = tracer.draw(step), tracer.draw(substep)
            options = Res2s(dtype=next(state.dtype for _, state in states.items()))
            return sample_res_2s(denoise, states, sigmas, step, substep, options, on_step=on_step)
