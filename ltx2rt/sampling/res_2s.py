"""The res_2s sampler: two evaluations and two noise injections a step (spec/sampling.md §5.4).

The state is carried in float64 within a step. Noise does not depend on the user's seed: upstream
gives none, so both stages replay the streams of seeds -1 and 9999.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from ltx2rt.engine import F32, F64, Array
from ltx2rt.latents.state import LatentState
from ltx2rt.latents.streams import Streams
from ltx2rt.sampling.gpu_noise import Generator
from ltx2rt.sampling.samplers import (
    Denoise,
    DrawNoise,
    OnStep,
    Sigma,
    States,
    blend_clean,
    latents_of,
    post_process,
)
from ltx2rt.weights.floats import cast

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


def normalised_noise_source(generator: Generator) -> DrawNoise:
    """A stream of normalised float64 noise."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Res2s:
    """How `sample_res_2s` steps.

    Attributes:
        eta: noise ratio of the full step; half steps always use 0.5.
        refine_anchor: iterate the anchor of a small step until it is consistent.
        per_token_noise: scale injected noise by each token's mask instead of blending afterwards.
        dtype: type the latents are rounded to after each step.
    """

    eta: float = _ETA
    refine_anchor: bool = True
    per_token_noise: bool = False
    dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class _Half:
    """One modality at the middle of a step: where it started from, and where to."""

    anchor: F64
    slope: F64
    midpoint: Array


def sample_res_2s(
    denoise: Denoise,
    states: States,
    sigmas: F32,
    draw_step: DrawNoise,
    draw_substep: DrawNoise,
    options: Res2s | None = None,
    *,
    on_step: OnStep | None = None,
) -> States:
    """Second-order sampler of the HQ pipeline.

    Args:
        denoise: the model with its guidance. Midpoints are called with a float64 sigma and step
            index 0; a schedule that ends at 0 adds one last call at sigma 0.0011.
        states: noised.
        sigmas: `[steps + 1]` float32.
        draw_step, draw_substep: normalised noise, video before audio (`normalised_noise_source`).
        on_step: called after every step.

    Returns:
        The states with their final latents.
    """
    options = options or Res2s()
    levels = [np.float32(s) for s in sigmas]
    ends_at_zero = bool(levels[-1] == 0)
    if ends_at_zero:
        levels[-1] = np.float32(_LAST_SIGMA)

    def predict(latents: Streams[Array], sigma: Sigma, index: int) -> Streams[Array]:
        return denoise(latents, sigma, index).map(post_process, states)

    for index, level in enumerate(pairwise(levels)):
        first = predict(latents_of(states), level[0], index)
        halves = states.map(partial(_half_step, options, level, draw_substep), first)
        middle = np.sqrt(np.float64(level[0]) * np.float64(level[1]))
        second = predict(halves.map(lambda half: half.midpoint), middle, 0)
        states = states.map(partial(_full_step, options, level, draw_step), halves, second)
        if on_step is not None:
            on_step(index, states)
    if ends_at_zero:
        last = predict(latents_of(states), levels[-1], len(levels) - 1)
        states = states.map(
            lambda state, found: replace(state, latent=cast(found, options.dtype)), last
        )
    return states


def _log_step(levels: tuple[Sigma, Sigma]) -> float:
    return float(-np.log(np.float64(levels[1]) / np.float64(levels[0])))


def _half_step(
    options: Res2s,
    levels: tuple[Sigma, Sigma],
    draw: DrawNoise,
    state: LatentState,
    denoised: Array,
) -> _Half:
    """From a step's first level to its (geometric) middle."""
    wide, wide_next = (np.float64(s) for s in levels)
    log_step = _log_step(levels)
    a21, _, _ = res_2s_coefficients(log_step)
    clean = denoised.astype(np.float64)
    anchor = state.latent.astype(np.float64)
    slope = clean - anchor
    target = anchor + log_step * a21 * slope
    between = (wide, np.sqrt(wide * wide_next))
    point = _inject(state, anchor, target, between, draw, _ETA, options.per_token_noise)
    if options.refine_anchor and log_step < 0.5 and levels[0] > 0.03:
        for _ in range(_REFINEMENTS):
            anchor = point - log_step * a21 * slope
            slope = clean - anchor
    return _Half(anchor, slope, cast(point, options.dtype))


def _full_step(
    options: Res2s,
    levels: tuple[Sigma, Sigma],
    draw: DrawNoise,
    state: LatentState,
    half: _Half,
    denoised: Array,
) -> LatentState:
    """The whole step, from both predictions."""
    log_step = _log_step(levels)
    _, b1, b2 = res_2s_coefficients(log_step)
    end_slope = denoised.astype(np.float64) - half.anchor
    target = half.anchor + log_step * (b1 * half.slope + b2 * end_slope)
    moved = _inject(state, half.anchor, target, levels, draw, options.eta, options.per_token_noise)
    return replace(state, latent=cast(moved, options.dtype))


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
