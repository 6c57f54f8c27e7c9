"""The res_2s sampler: two evaluations and two noise injections a step (spec/sampling.md 5.4).

The state is carried in float64 within a step. Noise does not depend on the user's seed: upstream
gives none, so both stages replay the streams of seeds -1 and 9999.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx2rt.latents.state import LatentState
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.sampling.samplers import (
    Denoise,
    DrawNoise,
    OnStep,
    Sigma,
    States,
    blend_clean,
    post_process,
)
from ltx2rt.weights.floats import cast

Array = NDArray[Any]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

STEP_SEED = -1
SUBSTEP_SEED = STEP_SEED + 10000

_LAST_SIGMA = 0.0011  # stands in for the 0 that the logarithmic step sizes cannot take
_ETA = 0.5
_SUBSTEP_POSITION = 0.5
_REFINEMENTS = 100


def res_2s_coefficients(
    log_step: float, position: float = _SUBSTEP_POSITION
) -> tuple[float, float, float]:
    """`(a21, b1, b2)` of the two-stage exponential Runge-Kutta step of size `log_step`."""
    a21 = position * _phi(1, -log_step * position)
    b2 = _phi(2, -log_step) / position
    return a21, _phi(1, -log_step) - b2, b2


def _phi(order: int, x: float) -> float:
    if abs(x) < 1e-10:
        return 1.0 / math.factorial(order)
    series = sum(x**k / math.factorial(k) for k in range(order))
    return (math.exp(x) - series) / x**order


def normalise_noise(noise: F64) -> F64:
    """Zero mean and unit (unbiased) deviation over everything, then over each batch item."""
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    mean = noise.mean(axis=(-2, -1), keepdims=True)
    normalised: F64 = (noise - mean) / noise.std(axis=(-2, -1), ddof=1, keepdims=True)
    return normalised


def normalised_noise_source(seed: int) -> DrawNoise:
    """A stream of normalised float64 noise."""
    generator = TorchGenerator(seed)
    return lambda shape: normalise_noise(generator.randn(shape, "float64"))


def sde_coefficients(
    sigma_next: Sigma | Array, eta: float = _ETA
) -> tuple[Sigma | Array, Sigma | Array, Sigma | Array]:
    """`(alpha ratio, sigma down, sigma up)`, in the precision of `sigma_next`."""
    kind = np.asarray(sigma_next).dtype.type
    one = kind(1)
    up = np.minimum(sigma_next * kind(eta), sigma_next * kind(0.9999))
    residual = np.sqrt(np.maximum(sigma_next * sigma_next - up * up, kind(0)))
    alpha = (one - sigma_next) + residual
    with np.errstate(invalid="ignore", divide="ignore"):
        down = residual / alpha
    return (
        np.where(np.isnan(alpha), one, alpha)[()],
        np.where(np.isnan(down), sigma_next, down)[()],
        np.where(np.isnan(up), kind(0), up)[()],
    )


def sde_step(
    sample: Array,
    target: Array,
    sigma: Sigma | Array,
    sigma_next: Sigma | Array,
    noise: Array,
    eta: float = _ETA,
) -> Array:
    """Replace part of a deterministic step by fresh noise.

    Args:
        sample: `[B, T, D]` tokens at `sigma`.
        target: `[B, T, D]` the deterministic result at `sigma_next`.
        sigma, sigma_next: noise levels; their precision is the coefficients'.
        noise: `[B, T, D]`, normalised.
        eta: ratio of the noise level that is injected.

    Returns:
        `[B, T, D]` in the dtype of `target`; `target` itself where nothing is injected.
    """
    alpha, down, up = sde_coefficients(sigma_next, eta)
    if np.any(up == 0) or np.any(np.asarray(sigma_next) == 0):
        return target
    slope = (sample - target) / (sigma - sigma_next)
    denoised = sample - sigma * slope
    return (alpha * (denoised + down * slope) + up * noise).astype(target.dtype)


def sample_res_2s(
    denoise: Denoise,
    video: LatentState | None,
    audio: LatentState | None,
    sigmas: F32,
    draw_step: DrawNoise,
    draw_substep: DrawNoise,
    *,
    eta: float = _ETA,
    refine_anchor: bool = True,
    per_token_noise: bool = False,
    dtype: str = "bfloat16",
    on_step: OnStep | None = None,
) -> States:
    """Second-order sampler of the HQ pipeline.

    Args:
        denoise: the model with its guidance. Midpoints are called with a float64 sigma and step
            index 0; a schedule that ends at 0 adds one last call at sigma 0.0011.
        video, audio: noised states.
        sigmas: `[steps + 1]` float32.
        draw_step, draw_substep: normalised noise, video before audio (`normalised_noise_source`).
        eta: noise ratio of the full step; half steps always use 0.5.
        refine_anchor: iterate the anchor of a small step until it is consistent.
        per_token_noise: scale injected noise by each token's mask instead of blending afterwards.
        dtype: type the latents are rounded to after each step.
        on_step: called after every step.

    Returns:
        The states with their final latents.
    """
    levels = [np.float32(s) for s in sigmas]
    ends_at_zero = bool(levels[-1] == 0)
    if ends_at_zero:
        levels[-1] = np.float32(_LAST_SIGMA)
    step_count = len(levels) - 1
    states = [video, audio]

    def predict(sigma: Sigma, index: int, latents: list[Array | None]) -> list[Array | None]:
        predictions = denoise(latents[0], latents[1], sigma, index)
        return [
            None if state is None or value is None else post_process(value, state)
            for state, value in zip(states, predictions, strict=True)
        ]

    for index in range(step_count):
        sigma, sigma_next = levels[index], levels[index + 1]
        wide, wide_next = np.float64(sigma), np.float64(sigma_next)
        log_step = float(-np.log(wide_next / wide))
        a21, b1, b2 = res_2s_coefficients(log_step)
        middle = np.sqrt(wide * wide_next)

        first = predict(sigma, index, [None if s is None else s.latent for s in states])
        anchors: list[F64] = []
        slopes: list[F64] = []
        midpoints: list[Array | None] = []
        for state, denoised in zip(states, first, strict=True):
            if state is None or denoised is None:
                anchors.append(np.empty(0))
                slopes.append(np.empty(0))
                midpoints.append(None)
                continue
            clean = denoised.astype(np.float64)
            anchor = state.latent.astype(np.float64)
            slope = clean - anchor
            point = _inject(
                state,
                anchor,
                anchor + log_step * a21 * slope,
                (wide, middle),
                draw_substep,
                _ETA,
                per_token_noise,
            )
            if refine_anchor and log_step < 0.5 and sigma > 0.03:
                for _ in range(_REFINEMENTS):
                    anchor = point - log_step * a21 * slope
                    slope = clean - anchor
            anchors.append(anchor)
            slopes.append(slope)
            midpoints.append(cast(point, dtype))

        second = predict(middle, 0, midpoints)
        for i, (state, denoised) in enumerate(zip(states, second, strict=True)):
            if state is None or denoised is None:
                continue
            end_slope = denoised.astype(np.float64) - anchors[i]
            target = anchors[i] + log_step * (b1 * slopes[i] + b2 * end_slope)
            moved = _inject(
                state, anchors[i], target, (sigma, sigma_next), draw_step, eta, per_token_noise
            )
            states[i] = replace(state, latent=cast(moved, dtype))
        if on_step is not None:
            on_step(index, states[0], states[1])

    if ends_at_zero:
        last = predict(levels[-1], step_count, [None if s is None else s.latent for s in states])
        for i, (state, denoised) in enumerate(zip(states, last, strict=True)):
            if state is not None and denoised is not None:
                states[i] = replace(state, latent=cast(denoised, dtype))
    return states[0], states[1]


def _inject(
    state: LatentState,
    sample: F64,
    target: F64,
    sigmas: tuple[Sigma, Sigma],
    draw_noise: DrawNoise,
    eta: float,
    per_token: bool,
) -> Array:
    noise = draw_noise(state.latent.shape)
    if per_token:
        sigma, sigma_next = (
            np.multiply(state.mask, s, dtype=np.result_type(s, np.float32)) for s in sigmas
        )
        return sde_step(sample, target, sigma, sigma_next, noise, eta)
    return blend_clean(sde_step(sample, target, *sigmas, noise, eta), state)
