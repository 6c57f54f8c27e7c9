"""A stage whose latents stay on the device: passes and steps are enqueued there, and the host reads
once, at the end. `sampling.samplers` is the twin, and runs wherever this does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np

from ltx2rt.backends.device_steps import DeviceLatents, DeviceSteps
from ltx2rt.components.denoisers import Guidance, GuidedDenoiser, modality_input
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.transformer import Pass, Transformer
from ltx2rt.components.transformer_inputs import Perturbations
from ltx2rt.engine import F32, Array
from ltx2rt.latents.streams import Streams
from ltx2rt.names import STEP_EULER, STEP_NOISY
from ltx2rt.sampling.guidance import GuiderParams
from ltx2rt.sampling.samplers import DrawNoise, Sampler, Sigma, States
from ltx2rt.sampling.step_numbers import euler_numbers, noisy_numbers

#: sampler -> the device graph of its step
STEPS: Mapping[str, str] = {"euler": STEP_EULER, "euler_ancestral": STEP_NOISY}

#: (step index, modality -> how many values of its latent are NaN or infinite)
OnDeviceStep = Callable[[int, Mapping[str, int]], None]


def reason_against(
    transformer: Transformer,
    states: States,
    guidance: Guidance | None,
    sampler: Sampler,
    *,
    looks_at: str | None,
) -> str | None:
    """Why a stage is sampled on the host; None: it need not be. This is the one place that decides.

    Args:
        looks_at: what wants the numbers of every step on the host, if anything does.
    """
    steps, shapes = transformer.steps, [state.latent.shape for _, state in states.items()]
    if steps is None:
        return "no engines take steps on a device"
    if looks_at is not None:
        return f"{looks_at} looks at every step"
    if sampler not in STEPS:
        return f"the sampler {sampler} keeps values of earlier steps or evaluations"
    if any(state.dtype != "float32" for _, state in states.items()):
        return "latents are rounded to 16 bits after every step"
    if any(shape[0] != 1 for shape in shapes):
        return "several latents are sampled at once"
    if guidance is not None and guidance.max_batch_size > 1:
        return "guidance passes run as one batch"
    for schedule in (guidance.video, guidance.audio) if guidance is not None else ():
        for params in schedule.bins.values():
            if params.cfg_mode != "cfg":
                return f"guidance {params.cfg_mode} projects on the host"
            if params.skip_step:
                return "guidance skips steps"
    return steps.reason_against([(shape[1], shape[2]) for shape in shapes])


def sample_on_device(
    transformer: Transformer,
    states: States,
    context: TextContext,
    guidance: Guidance | None,
    sampler: Sampler,
    sigmas: F32,
    draw: DrawNoise,
    eta: float,
    on_step: OnDeviceStep,
) -> States:
    """Run a stage of which `reason_against` says nothing, inside `transformer.stage()`.

    Args:
        draw, eta: of the ancestral sampler, see `samplers.sample_euler_ancestral`.
        on_step: after every step; may raise to cancel.

    Returns:
        The states with their final latents.
    """
    steps = transformer.steps
    assert isinstance(steps, DeviceSteps)
    ask = _guided(transformer, states, context, guidance) if guidance else _simple(states, context)
    given = {m: (s.latent, s.clean, s.mask) for m, s in states.items()}
    with steps.begin(given, STEPS[sampler]) as latents:
        for index, (sigma, after) in enumerate(pairwise(np.float32(s) for s in sigmas)):
            taken = states.named(lambda modality, _: _taken(latents, modality))
            params, names, asked = ask(taken, sigma)
            for modality, state in states.items():
                guide, noise = params.get(modality), None
                if sampler == "euler":
                    numbers = euler_numbers(guide, names, sigma, after)
                else:
                    numbers = noisy_numbers(guide, names, sigma, after, eta)
                    noise = draw(state.latent.shape) if after != 0 and eta > 0 else None
                latents.prepare(modality, numbers, None if noise is None else _f32(noise))
            transformer.step(asked, names, latents)
            on_step(index, latents.finish())
        found_latents = latents.read()
    return states.named(lambda modality, state: replace(state, latent=found_latents[modality]))


#: latents and sigma -> guidance of each modality, names of the passes, and the passes
_Ask = Callable[[Streams[Array], Sigma], tuple[Mapping[str, GuiderParams], list[str], list[Pass]]]


def _simple(states: States, context: TextContext) -> _Ask:
    contexts = Streams(context.video, context.audio)

    def ask(
        latents: Streams[Array], sigma: Sigma
    ) -> tuple[Mapping[str, GuiderParams], list[str], list[Pass]]:
        inputs = states.map(
            lambda state, latent, text: modality_input(state, latent, sigma, text),
            latents,
            contexts,
        )
        return {}, ["cond"], [(inputs.video, inputs.audio, Perturbations())]

    return ask


def _guided(
    transformer: Transformer, states: States, context: TextContext, guidance: Guidance
) -> _Ask:
    return GuidedDenoiser(transformer, states, context, guidance).single_passes


def _taken(latents: DeviceLatents, modality: str) -> Array:
    """A latent as inputs of the transformer carry it: its stack takes tensors of its device."""
    return cast("Array", latents.taken(modality))


def _f32(values: Array) -> F32:
    return values.astype(np.float32, copy=False)
