"""A step of a sampler as a few numbers, for devices that do its arithmetic on their own."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ltx2rt.engine import F32
from ltx2rt.sampling.guidance import GuiderParams
from ltx2rt.sampling.samplers import Sigma, ancestral_factors

#: the passes of a guided step; one that did not run counts nothing
PASSES = ("cond", "uncond", "ptb", "mod")
_GUIDED = ("sigma", *PASSES[1:], "rescale", "rescale_rest")
#: what the numbers are called, in their order
EULER_NUMBERS = (*_GUIDED, "step")
NOISY_NUMBERS = (*_GUIDED, "ratio", "rest", "gain", "noise_scale", "again")

_ONE = np.float32(1)


def euler_numbers(
    params: GuiderParams | None, ran: Collection[str], sigma: Sigma, sigma_next: Sigma
) -> F32:
    """Of `samplers.euler_step`.

    Args:
        params: guidance of this modality; None: there is none.
        ran: the passes that ran.
    """
    step = np.float32(sigma_next) - np.float32(sigma)
    return np.array([*_guidance(params, ran, sigma), step], np.float32)


def noisy_numbers(
    params: GuiderParams | None, ran: Collection[str], sigma: Sigma, sigma_next: Sigma, eta: float
) -> F32:
    """Of `samplers.ancestral_step` and the mask after it (spec/sampling.md §5.3); arguments as of
    `euler_numbers`.
    """
    s, t = np.float32(sigma), np.float32(sigma_next)
    zero = np.float32(0)
    ratio, gain, scale, again = zero, _ONE, zero, zero
    if t != 0:
        ratio, gain, scale = ancestral_factors(s, t, eta)
        again = _ONE if eta > 0 else zero
    moved = [ratio, _ONE - ratio, gain, scale, again]
    return np.array([*_guidance(params, ran, sigma), *moved], np.float32)


def _guidance(params: GuiderParams | None, ran: Collection[str], sigma: Sigma) -> list[float]:
    p = params or GuiderParams()
    scales = {"uncond": p.cfg_scale - 1, "ptb": p.stg_scale, "mod": p.modality_scale - 1}
    passes = [scales[name] if name in ran else 0.0 for name in PASSES[1:]]
    return [float(sigma), *passes, p.rescale_scale, 1 - p.rescale_scale]
