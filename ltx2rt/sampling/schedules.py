"""Sigma schedules: fixed tables of the distilled models and the computed schedulers.

A schedule is float32, starts near 1, falls strictly and ends at 0: `steps + 1` values
(spec/sampling.md §1). Computed values equal upstream's bit for bit, so the order of float32
operations below matters.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ltx2rt.engine import F32
from ltx2rt.errors import Field, OptionError, Problem

DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
STAGE2_DISTILLED = (0.909375, 0.725, 0.421875, 0.0)
TEMPORAL_ROUND = DISTILLED[-5:]
HDR_STAGE2 = (0.909375, 0.725, 0.0)

Scheduler = Literal["ltx2", "linear_quadratic", "beta"]
SCHEDULERS: tuple[Scheduler, ...] = typing.get_args(Scheduler)

_BASE_TOKENS = 1024
_MAX_TOKENS = 4096


def sigma_table(values: ArrayLike) -> F32:
    """Check a schedule given as numbers and return it as float32.

    Raises:
        OptionError: fewer than two values, not finite, not strictly falling, or below 0.
    """
    sigmas = np.array(values, np.float32)
    if sigmas.ndim != 1 or sigmas.size < 2:
        raise OptionError(f"sigmas must be a list of at least 2 numbers, not shape {sigmas.shape}.")
    if not np.isfinite(sigmas).all() or (np.diff(sigmas) >= 0).any() or sigmas[-1] < 0:
        shown = ", ".join(f"{sigma:g}" for sigma in sigmas[:20]) + ", ..." * (sigmas.size > 20)
        raise OptionError(f"sigmas must fall strictly and end at 0 or above, found {shown}.")
    return sigmas


def begun_at(strength: float, sigmas: Sequence[float]) -> tuple[float, ...]:
    """A schedule that begins at noise level `strength`; all of it where that is not below its
    first.
    """
    if strength >= sigmas[0]:
        return tuple(sigmas)
    return (strength, *(sigma for sigma in sigmas if sigma < strength))


def scheduled_sigmas(scheduler: Scheduler, steps: int, token_count: int | None = None) -> F32:
    """Noise levels of `steps` steps; `token_count` shifts only those of the LTX-2 scheduler."""
    if scheduler == "linear_quadratic":
        return linear_quadratic_sigmas(steps)
    if scheduler == "beta":
        return beta_sigmas(steps)
    return ltx2_sigmas(steps, token_count)


def ltx2_sigmas(
    steps: int,
    token_count: int | None = None,
    *,
    max_shift: float = 2.05,
    base_shift: float = 0.95,
    terminal: float = 0.1,
    stretch: bool = True,
) -> F32:
    """The LTX-2 scheduler: shifted linear schedule, stretched to end at `terminal`, then 0.

    Args:
        steps: number of steps, at least 1.
        token_count: latent tokens `F*H*W` that set the shift; None means 4096. Only the HQ pipeline
            gives one (its stage-1 target tokens).
        max_shift, base_shift: shift at 4096 and at 1024 tokens; linear between and beyond.
        terminal: last sigma before 0 when stretched.
        stretch: rescale so that the last non-zero sigma equals `terminal`.

    Returns:
        `[steps + 1]` float32. The first value can be one ulp below 1, as upstream's is.

    Raises:
        OptionError: `steps` is less than 1, or so few that the last sigma rounds to 1 (upstream
            returns NaN there).
    """
    _check_steps(steps)
    slope = (max_shift - base_shift) / (_MAX_TOKENS - _BASE_TOKENS)
    intercept = base_shift - slope * _BASE_TOKENS
    tokens = _MAX_TOKENS if token_count is None else token_count
    shift = np.float32(math.exp(tokens * slope + intercept))

    sigmas = _linspace_down(steps)
    above_zero = sigmas[:-1]
    ratio = np.float32(1) / above_zero - np.float32(1)
    sigmas[:-1] = (np.float32(1) / (ratio + shift)) * shift
    if stretch:
        rest = np.float32(1) - sigmas[:-1]
        factor = rest[-1] / np.float32(1.0 - terminal)
        if factor == 0:
            raise OptionError(
                Problem(
                    Field("guidance.num_inference_steps"),
                    f"={steps} gives no schedule for {tokens} latent tokens: the last sigma rounds "
                    "to 1. Take more steps or give the sigmas.",
                )
            )
        sigmas[:-1] = np.float32(1) - rest / factor
    return sigmas


def linear_quadratic_sigmas(
    steps: int, *, threshold: float = 0.025, linear_steps: int | None = None
) -> F32:
    """Linear start, quadratic rest (no pipeline selects it); `[steps + 1]` float32."""
    _check_steps(steps)
    if steps == 1:
        return np.array([1.0, 0.0], np.float32)
    linear = steps // 2 if linear_steps is None else linear_steps
    quadratic = steps - linear
    excess = linear - threshold * steps
    a = excess / (linear * quadratic**2)
    b = threshold / linear - 2 * excess / quadratic**2
    c = a * linear**2
    values = [threshold / linear * i for i in range(linear)]
    values += [a * i**2 + b * i + c for i in range(linear, steps)]
    return np.array([1.0 - y for y in [*values, 1.0]], np.float32)


def beta_sigmas(steps: int, *, shift: float = 2.37, alpha: float = 0.6, beta: float = 0.6) -> F32:
    """Beta-distributed picks from 10000 time-shifted levels (no pipeline selects it).

    Duplicate picks are dropped, so the result can be shorter than `steps + 1`.
    """
    _check_steps(steps)
    count = 10000
    times = np.arange(1, count + 1, dtype=np.float32) / np.float32(count)
    exp_shift = np.float32(math.exp(shift))
    levels = (np.float32(1) / (np.float32(1) / times - np.float32(1) + exp_shift)) * exp_shift
    picks: list[int] = []
    for j in range(steps):
        index = round(beta_quantile(1.0 - j / steps, alpha, beta) * (count - 1))
        if not picks or index != picks[-1]:
            picks.append(index)
    return np.append(levels[picks], np.float32(0))


def beta_quantile(probability: float, alpha: float, beta: float) -> float:
    """The value below which a Beta(alpha, beta) variable falls with `probability`."""
    if probability <= 0 or probability >= 1:
        return float(probability >= 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _beta_cdf(middle, alpha, beta) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function by its continued fraction (Lentz)."""
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta_cdf(1.0 - x, b, a)
    if x <= 0:
        return 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            fraction *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return front * fraction


def _linspace_down(steps: int) -> F32:
    """`torch.linspace(1, 0, steps + 1)`: fused multiply-adds from the nearer end."""
    step = np.float64(np.float32(-1) / np.float32(steps))
    index = np.arange(steps + 1)
    near_start = (1.0 + step * index).astype(np.float32)
    near_end = (-step * (steps - index)).astype(np.float32)
    return np.where(index < (steps + 1) // 2, near_start, near_end)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise OptionError(f"num_inference_steps={steps} is less than 1.")
