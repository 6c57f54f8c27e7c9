"""Drawing of tokens, against the definitions of temperature, top-k and top-p."""

from __future__ import annotations

import numpy as np
import pytest

from ltx2rt.sampling.tokens import TokenSampling, likely_tokens, next_token


def test_few_tokens_are_likely() -> None:
    probabilities = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    scores = np.log(probabilities).astype(np.float32)
    plain = {"temperature": 1.0, "top_k": 5, "top_p": 1.0}
    tokens, weights = likely_tokens(scores, TokenSampling(**plain))
    assert tokens.tolist() == [1, 3, 4, 0, 2]
    assert weights == pytest.approx(probabilities[tokens], rel=1e-6)
    for change, kept in (
        ({"top_k": 3}, [0.4, 0.3, 0.15]),
        ({"top_p": 0.65}, [0.4, 0.3]),  # the second one passes it
        ({"top_p": 0.39}, [0.4]),
        ({"temperature": 0.5}, [0.16, 0.09, 0.0225, 0.01, 0.0025]),  # squares
    ):
        tokens, weights = likely_tokens(scores, TokenSampling(**{**plain, **change}))
        assert weights == pytest.approx(np.array(kept) / sum(kept), rel=1e-5), change


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    scores = np.log([0.2, 0.7, 0.1])
    sampling = TokenSampling(temperature=1.0, top_k=3, top_p=1.0)
    generator = np.random.default_rng(1)
    drawn = [next_token(scores, sampling, generator) for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.2, 0.7, 0.1], abs=0.03)
    again = np.random.default_rng(1)
    assert [next_token(scores, sampling, again) for _ in range(50)] == drawn[:50]
    greedy = TokenSampling(temperature=0.0)
    assert {next_token(scores, greedy, generator) for _ in range(5)} == {1}
