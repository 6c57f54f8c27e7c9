"""Inputs of an engine are checked against its spec, all problems at once."""

from __future__ import annotations

import numpy as np
import pytest

from ltx2rt.engine import EngineSpec, TensorSpec, check_inputs
from ltx2rt.errors import ShapeError

SPEC = EngineSpec(
    "block",
    (
        TensorSpec("hidden", "float32", ("B", "T", 4)),
        TensorSpec("index", "int64", ("B", "T")),
        TensorSpec("bias", "float32", ("B", "1|T", "T")),
    ),
    (),
)


def inputs(batch: int = 2, tokens: int = 3, queries: int = 1) -> dict[str, np.ndarray]:
    return {
        "hidden": np.zeros((batch, tokens, 4), np.float32),
        "index": np.zeros((batch, tokens), np.int64),
        "bias": np.zeros((batch, queries, tokens), np.float32),
    }


@pytest.mark.parametrize("queries", [1, 3])
def test_fitting_inputs_pass_and_weights_are_ignored(queries: int) -> None:
    check_inputs(SPEC, {**inputs(queries=queries), "attn1.to_q.weight": np.zeros(1)})


def test_every_problem_is_named() -> None:
    wrong = inputs(queries=2)
    wrong["index"] = wrong["index"].astype(np.int32)
    del wrong["hidden"]
    with pytest.raises(ShapeError) as error:
        check_inputs(SPEC, wrong)
    text = str(error.value)
    assert "hidden is missing" in text
    assert "index is int32, expected int64" in text
    assert "bias has shape [2, 2, 3]" in text


def test_equal_symbols_mean_equal_sizes() -> None:
    wrong = inputs()
    wrong["index"] = np.zeros((2, 5), np.int64)
    with pytest.raises(ShapeError, match=r"index has shape \[2, 5\]"):
        check_inputs(SPEC, wrong)
