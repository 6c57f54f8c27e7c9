"""Copies in another layout, and rounding in pieces, equal the plain way of doing it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.weights import floats
from ltx2rt.weights.layout import transposed_copy

DTYPES = ("float32", "uint16", "uint8", "float64")


@given(st.integers(0, 70), st.integers(0, 70), st.sampled_from(DTYPES))
def test_transposed_copies(rows: int, columns: int, dtype: str) -> None:
    matrix = np.arange(rows * columns).reshape(rows, columns).astype(dtype)
    for source in (matrix, matrix[::-1], np.asfortranarray(matrix)):
        result = transposed_copy(source)
        np.testing.assert_array_equal(result, source.T)
        assert result.flags.c_contiguous
        assert not np.shares_memory(result, source)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_copies_of_several_tiles(dtype: str) -> None:
    """Of which the last are smaller in both directions."""
    matrix = np.arange(300 * 520, dtype=np.uint32).reshape(300, 520).astype(dtype)
    for source in (matrix, matrix[:, ::2], matrix[:256, :512]):
        np.testing.assert_array_equal(transposed_copy(source), source.T)


def test_vectors_stay_as_they_are() -> None:
    np.testing.assert_array_equal(transposed_copy(np.arange(3)), np.arange(3))


def test_bfloat16_rounding_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 10_000, np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, np.nan])])
    whole = floats.bfloat16_bits(values)
    monkeypatch.setattr(floats, "_CHUNK", 999)
    np.testing.assert_array_equal(floats.bfloat16_bits(values), whole)
    wide = floats.bfloat16_values(whole).astype(np.float64)
    finite = np.isfinite(values) & np.isfinite(wide)
    exact = values[finite].astype(np.float64)
    # half of a step of eight significant bits, or of the smallest step
    half = np.maximum(np.exp2(np.floor(np.log2(np.abs(exact) + 1e-300)) - 8), 2.0**-134)
    assert (np.abs(wide[finite] - exact) <= half).all()
    assert np.isnan(wide[np.isnan(values)]).all()
    assert floats.bfloat16_bits(np.float32(1.5)).shape == ()
    assert floats.bfloat16_bits(np.zeros((2, 0, 3), np.float32)).shape == (2, 0, 3)
