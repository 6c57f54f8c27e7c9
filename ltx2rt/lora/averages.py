"""Averages of the files that one training left behind, step by step: post-hoc EMA, as musubi-tuner
has it. Factors are averaged, not what they add: their directions change slowly from file to file.
"""

from __future__ import annotations

import numpy as np


def ema_weights(
    count: int, decay: float, last_decay: float | None = None, sigma: float | None = None
) -> list[float]:
    """What each of `count` files counts, first to last; together 1.

    Args:
        decay: file by file, the average so far counts this much, and the file the rest; it goes in
            equal steps to `last_decay` if that is given.
        sigma: relative width of the average instead: decays of the power function
            `(1 - 1 / t)^(gamma + 1)` (Karras et al., 2024, arXiv:2312.02696, algorithm 2).
    """
    steps = count - 1
    if sigma is not None:
        gamma = _gamma(sigma)
        decays = [(1 - 1 / t) ** (gamma + 1) for t in range(1, count)]
    else:
        last = decay if last_decay is None else last_decay
        decays = [decay + (last - decay) * i / max(steps - 1, 1) for i in range(steps)]
    weights = [1.0]
    for beta in decays:
        weights = [*(weight * beta for weight in weights), 1 - beta]
    return weights


def _gamma(sigma: float) -> float:
    """The exponent of a profile of this relative standard deviation."""
    inverse = sigma**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))
