"""Noise, conversions, steps and sampling loops (spec/sampling.md §2 to §5).

All functions are pure and work on token arrays `[B, T, D]`. A step computes in float32 and rounds
its result to the state's `dtype`, as upstream does. Loops drive video and audio in lockstep; an
absent modality is None throughout.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import OptionError
from ltx2rt.latents.state import LatentState
from ltx2rt.latents.streams import Streams
from ltx2rt.weights.floats import cast

Sigma = np.float32 | np.float64

#: (latents, sigma, step index) -> clean estimates
Denoise = Callable[[Streams[Array], Sigma, int], Streams[Array]]
#: shape -> standard normal values; called in the order in which upstream draws
DrawNoise = Callable[[tuple[int, ...]], Array]
#: (step index, states) after every step; may raise to cancel
OnStep = Callable[[int, "States"], None]
#: (modality, state, prediction, sigma, next sigma) -> new latent
Step = Callable[[str, LatentState, Array, Sigma, Sigma], Array]
#: (modality, latent, denoised, sigma, next sigma, noise or None) -> new latent
Move = Callable[[str, Array, Array, Sigma, Sigma, Array | None], F32]
#: modality -> the unconditional prediction that belongs to the last denoised one
UnconditionalOf = Callable[[str], Array]
States = Streams[LatentState]
Sampler = Literal["euler", "euler_ancestral", "res_2s", "gradient_estimation", "cfg_pp"]
SAMPLERS: tuple[Sampler, ...] = typing.get_args(Sampler)

_ONE = np.float32(1)


def add_noise(state: LatentState, noise: Array, noise_scale: float = 1.0) -> LatentState:
    """Start a state: mix noise into the latent, then pull toward `clean` where the mask says so.

    Args:
        state: fresh or conditioned state.
        noise: `[B, T, D]` standard normal values, appended tokens included.
        noise_scale: 1 starts from pure noise; stage 2 starts at its first sigma.
    """
    latent, clean = _f32(state.latent), _f32(state.clean)
    mixed = _lerp(latent, _f32(noise), np.asarray(noise_scale, np.float32))
    started = _lerp(clean, mixed, state.mask)
    return replace(state, latent=cast(started, state.dtype))


def _lerp(start: F32, end: F32, weight: F32) -> F32:
    """Linear interpolation by one fused multiply-add from the nearer end, as torch's kernel does.

    Products of float32 numbers are exact in float64, so summing there and rounding once is the
    fused result up to double rounding (about one value in 2^29, by one ulp).
    """
    span = (end - start).astype(np.float64)
    near = np.abs(weight) < 0.5
    base = np.where(near, start, end)
    factor = np.where(near, weight, weight - _ONE)
    return (base + span * factor).astype(np.float32)


def modality_sigma(state: LatentState, sigma: Sigma) -> Sigma:
    """The scalar noise level the model is told: 0 for a frozen modality."""
    return type(sigma)(0) if state.frozen else sigma


def token_timesteps(state: LatentState, sigma: Sigma) -> Array:
    """`[B, T, 1]` noise level of every token, `mask * sigma`, in [0, 1]."""
    levels: Array = np.multiply(state.mask, sigma, dtype=type(sigma))
    return levels


def to_denoised(
    latent: Array, velocity: Array, sigma: Sigma | F32, dtype: str = "float32"
) -> Array:
    """Clean estimate `x - v * sigma`; `sigma` may be per token."""
    return cast(_f32(latent) - _f32(velocity) * np.asarray(sigma, np.float32), dtype)


def to_velocity(latent: Array, denoised: Array, sigma: Sigma, dtype: str = "float32") -> Array:
    """Velocity `(x - denoised) / sigma`.

    Raises:
        OptionError: sigma is 0.
    """
    if sigma == 0:
        raise OptionError("A velocity cannot be computed at sigma=0.")
    return cast((_f32(latent) - _f32(denoised)) / np.float32(sigma), dtype)


def post_process(denoised: Array, state: LatentState) -> Array:
    """Pull a prediction toward the clean tokens where the mask is below 1.

    Computed in float32 (float64 for a float64 prediction) and rounded to the state's dtype.
    """
    blended = blend_clean(denoised, state)
    return blended if denoised.dtype == np.float64 else cast(blended, state.dtype)


def blend_clean(values: Array, state: LatentState) -> Array:
    """`values * m + clean * (1 - m)` in the precision of `values`, at least float32."""
    values = values if values.dtype == np.float64 else _f32(values)
    return values * state.mask + _f32(state.clean) * (_ONE - state.mask)


def euler_step(
    latent: Array, denoised: Array, sigma: Sigma, sigma_next: Sigma, dtype: str = "float32"
) -> Array:
    """One deterministic Euler step from `sigma` down to `sigma_next`.

    Args:
        latent: `[B, T, D]` tokens at `sigma`.
        denoised: `[B, T, D]` clean estimate.
        sigma, sigma_next: noise levels, `sigma_next < sigma`.
        dtype: the velocity and the result are rounded to it.
    """
    velocity = to_velocity(latent, denoised, sigma, dtype)
    step = np.float32(sigma_next) - np.float32(sigma)
    return cast(_f32(latent) + _f32(velocity) * step, dtype)


def ancestral_step(
    latent: Array,
    denoised: Array,
    sigma: Sigma,
    sigma_next: Sigma,
    noise: Array | None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> F32:
    """One stochastic Euler step in rectified-flow form (spec/sampling.md §5.3), in float32.

    Args:
        latent, denoised: `[B, T, D]`.
        sigma, sigma_next: noise levels; a `sigma_next` of 0 returns `denoised`.
        noise: `[B, T, D]` standard normal; None is allowed where none is used (eta 0, last step).
        eta: share of the step that is replaced by fresh noise.
        s_noise: scale of that noise.
    """
    s, t = np.float32(sigma), np.float32(sigma_next)
    if t == 0:
        return _f32(denoised)
    ratio, gain, scale = ancestral_factors(s, t, eta)
    moved = ratio * _f32(latent) + (_ONE - ratio) * _f32(denoised)
    if eta <= 0:
        return moved
    if noise is None:
        raise OptionError(f"An ancestral step with eta={eta} needs noise.")
    stepped: F32 = gain * moved + _f32(noise) * np.float32(s_noise) * scale
    return stepped


def ancestral_factors(
    s: np.float32, t: np.float32, eta: float
) -> tuple[np.float32, np.float32, np.float32]:
    """Of a step from noise level `s` to `t` > 0 (spec/sampling.md §5.3): the latent's share, the
    factor of what was moved, and that of fresh noise.
    """
    down = t * (_ONE + (t / s - _ONE) * np.float32(eta))
    ratio = down / s
    if eta <= 0:
        return ratio, _ONE, np.float32(0)
    alpha_next, alpha_down = _ONE - t, _ONE - down
    variance = t * t - down * down * (alpha_next * alpha_next) / (alpha_down * alpha_down)
    return ratio, alpha_next / alpha_down, np.sqrt(np.maximum(variance, np.float32(0)))


def sample_euler(
    denoise: Denoise,
    states: States,
    sigmas: F32,
    *,
    on_step: OnStep | None = None,
) -> States:
    """The default sampler: plain Euler steps.

    Args:
        denoise: the model with its guidance; called once a step, before mask post-processing.
        states: noised; at least one.
        sigmas: `[steps + 1]` float32.
        on_step: called after every step.

    Returns:
        The states with their final latents.
    """

    def step(_: str, state: LatentState, prediction: Array, s: Sigma, t: Sigma) -> Array:
        fixed = post_process(prediction, state)
        return euler_step(state.latent, fixed, s, t, state.dtype)

    return drive(denoise, states, sigmas, step, on_step)


def sample_gradient_estimation(
    denoise: Denoise,
    states: States,
    sigmas: F32,
    *,
    gamma: float = 2.0,
    on_step: OnStep | None = None,
) -> States:
    """Euler with the velocity extrapolated from the previous step (spec/sampling.md §5.2)."""
    previous: dict[str, Array] = {}

    def step(modality: str, state: LatentState, prediction: Array, s: Sigma, t: Sigma) -> Array:
        fixed = post_process(prediction, state)
        if t == 0:
            return fixed
        velocity = to_velocity(state.latent, fixed, s, state.dtype)
        before = previous.get(modality)
        previous[modality] = velocity
        if before is not None:
            total = np.float32(gamma) * (_f32(velocity) - _f32(before)) + _f32(before)
            fixed = to_denoised(state.latent, cast(total, state.dtype), s, state.dtype)
        return euler_step(state.latent, fixed, s, t, state.dtype)

    return drive(denoise, states, sigmas, step, on_step)


def sample_euler_ancestral(
    denoise: Denoise,
    states: States,
    sigmas: F32,
    draw_noise: DrawNoise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    dtype: str | None = None,
    on_step: OnStep | None = None,
) -> States:
    """Euler with fresh noise every step (LTX-2.5 stage 1, temporal rounds).

    Args:
        denoise, states, sigmas, on_step: as `sample_euler`.
        draw_noise: called for video, then audio, on every step but the last.
        eta, s_noise: see `ancestral_step`; with eta 0 nothing is drawn.
        dtype: type the latents are rounded to after each step; None keeps each state's own.
    """

    def move(_: str, x: Array, denoised: Array, s: Sigma, t: Sigma, noise: Array | None) -> F32:
        return ancestral_step(x, denoised, s, t, noise, eta=eta, s_noise=s_noise)

    step = _noisy_step(move, draw_noise, eta, dtype)
    return drive(denoise, states, sigmas, step, on_step)


def _noisy_step(move: Move, draw_noise: DrawNoise, eta: float, dtype: str | None) -> Step:
    """A step that draws fresh noise unless it is the last, and keeps clean tokens clean."""

    def step(modality: str, state: LatentState, prediction: Array, s: Sigma, t: Sigma) -> Array:
        fixed = blend_clean(_f32(prediction), state)
        needs_noise = bool(t != 0) and eta > 0
        noise = draw_noise(state.latent.shape) if needs_noise else None
        moved: Array = move(modality, state.latent, fixed, s, t, noise)
        if needs_noise:
            moved = blend_clean(moved, state)
        return cast(moved, dtype or state.dtype)

    return step


def cfg_pp_step(
    latent: Array,
    denoised: Array,
    unconditional: Array,
    sigma: Sigma,
    sigma_next: Sigma,
    noise: Array | None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> F32:
    """One CFG++ Euler step: the direction comes from the unconditional prediction (5.5), float32.

    Arguments as `ancestral_step`; `unconditional` is the clean estimate without the prompt.
    """
    s, t = np.float32(sigma), np.float32(sigma_next)
    if t == 0:
        return _f32(denoised)
    tiny = np.float32(np.finfo(np.float32).eps)
    alpha, alpha_next = np.maximum(_ONE - s, tiny), np.maximum(_ONE - t, tiny)
    direction = (_f32(latent) - alpha * _f32(unconditional)) / s
    ratio, ratio_next = s / alpha, t / alpha_next
    square, square_next = ratio * ratio, ratio_next * ratio_next
    variance = square_next * (square - square_next) / square
    up = np.minimum(np.float32(eta) * np.sqrt(np.maximum(variance, np.float32(0))), ratio_next)
    down = np.sqrt(np.maximum(square_next - up * up, np.float32(0)))
    stepped: F32 = alpha_next * _f32(denoised) + alpha_next * down * direction
    if eta > 0 and s_noise > 0:
        if noise is None:
            raise OptionError(f"A CFG++ step with eta={eta} needs noise.")
        stepped = stepped + alpha_next * _f32(noise) * np.float32(s_noise) * up
    return stepped


def sample_euler_cfg_pp(
    denoise: Denoise,
    unconditional: UnconditionalOf,
    states: States,
    sigmas: F32,
    draw_noise: DrawNoise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    dtype: str | None = None,
    on_step: OnStep | None = None,
) -> States:
    """CFG++ (no pipeline selects it); as `sample_euler_ancestral`.

    `unconditional("video" | "audio")` returns the last unconditional prediction of `denoise`.
    """

    def move(m: str, x: Array, denoised: Array, s: Sigma, t: Sigma, noise: Array | None) -> F32:
        return cfg_pp_step(x, denoised, unconditional(m), s, t, noise, eta=eta, s_noise=s_noise)

    step = _noisy_step(move, draw_noise, eta, dtype)
    return drive(denoise, states, sigmas, step, on_step)


def drive(
    denoise: Denoise,
    states: States,
    sigmas: F32,
    step: Step,
    on_step: OnStep | None = None,
) -> States:
    """Run a one-evaluation-per-step sampler: predict, then step video, then step audio."""
    values = [np.float32(s) for s in sigmas]
    for index, (sigma, sigma_next) in enumerate(pairwise(values)):
        predictions = denoise(latents_of(states), sigma, index)
        states = states.named(partial(_moved, step, sigma, sigma_next), predictions)
        if on_step is not None:
            on_step(index, states)
    return states


def latents_of(states: States) -> Streams[Array]:
    """What a model gets of its states."""
    return states.map(lambda state: state.latent)


def _moved(
    step: Step, sigma: Sigma, sigma_next: Sigma, modality: str, state: LatentState, found: Array
) -> LatentState:
    return replace(state, latent=step(modality, state, found, sigma, sigma_next))


def _f32(values: Array) -> F32:
    return values.astype(np.float32, copy=False)
