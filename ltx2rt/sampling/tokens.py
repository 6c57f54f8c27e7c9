"""The next token of a text: scores to one of the likely tokens (spec/text_encoder.md §6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSampling:
    """How tokens are drawn; the values are those that Gemma 3 is published with, but for the
    temperature, which is the official pipeline's.

    Attributes:
        temperature: 0 takes the likeliest token; above it scores are divided by it.
        top_k: only so many of the likeliest tokens are drawn from.
        top_p: and of those the fewest that together are at least so probable.
    """

    temperature: float = 0.7
    top_k: int = 64
    top_p: float = 0.95


def likely_tokens(
    scores: Array, sampling: TokenSampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What may be drawn: tokens, the likeliest first, and their probabilities, whose sum is 1.

    Args:
        scores: `[V]`, any float dtype.
    """
    values = np.asarray(scores, np.float64)
    order = np.argsort(-values, kind="stable")[: sampling.top_k]
    if not sampling.temperature:
        return order[:1].astype(np.int64), np.ones(1)
    kept = values[order] / sampling.temperature
    weights = np.exp(kept - kept[0])
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    inside = before < sampling.top_p
    return order[inside].astype(np.int64), weights[inside] / weights[inside].sum()


def next_token(scores: Array, sampling: TokenSampling, generator: np.random.Generator) -> int:
    """A token that follows.

    Args:
        scores: `[V]`, any float dtype.
        generator: one number is drawn from it, whatever the scores are.
    """
    tokens, weights = likely_tokens(scores, sampling)
    place = np.searchsorted(np.cumsum(weights), generator.random(), side="right")
    return int(tokens[min(int(place), len(tokens) - 1)])
