"""Codecs against torch's own number types, code by code, and against the official fp8 helpers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltx2rt.weights.codecs import fp8, minifloat, nvfp4


def special_values() -> np.ndarray:
    """Every code's value, all midpoints, their neighbours, and random values over all exponents."""
    levels = np.unique(fp8.TABLE[np.isfinite(fp8.TABLE)])
    middles = (levels[1:] + levels[:-1]) / 2
    around = [np.nextafter(middles, np.float32(s)) for s in (-np.inf, np.inf)]
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(200_000) * np.exp2(rng.uniform(-14, 10, 200_000))
    return np.concatenate([levels, middles, *around, wide]).astype(np.float32)


def test_e4m3_equals_torch() -> None:
    values = special_values()
    inside = np.clip(values, -448, 448)
    want = torch.from_numpy(inside).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(fp8.encode(values), want)
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(
        fp8.TABLE, codes.view(torch.float8_e4m3fn).to(torch.float32).numpy()
    )


@pytest.mark.parametrize(
    ("table", "dtype"),
    [(fp8.E5M2_TABLE, torch.float8_e5m2), (fp8.E8M0_TABLE, torch.float8_e8m0fnu)],
)
def test_decode_tables_equal_torch(table: np.ndarray, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(table, codes.view(dtype).to(torch.float32).numpy())


def test_e2m1_equals_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.concatenate([special_values(), np.linspace(-8, 8, 4097, dtype=np.float32)])
    want = np.clip(values, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    got = minifloat.round_to_codes(values, minifloat.E2M1)
    np.testing.assert_array_equal(got, want.view(np.uint8))
    np.testing.assert_array_equal(
        nvfp4.VALUES, np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    )
