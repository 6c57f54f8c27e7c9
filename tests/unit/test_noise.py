"""Noise against stored digests of torch's CPU generator (sha256, first 16 hex digits)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ltx2rt.errors import OptionError
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.weights.floats import bfloat16_bits


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("seed", "count", "dtype", "want"),
    [
        (42, 16, "float32", "fc34b516db1204ac"),
        (42, 100003, "float32", "fa6d3f1cca1f8ba3"),
        (7, 4096, "float32", "df1f2643101fd189"),
        (42, 7, "float32", "ac1fcc494490b91f"),
        (42, 1000, "bfloat16", "75e94f621ecc941a"),
        (42, 100003, "bfloat16", "986de7af16cdc3b9"),
        (42, 1000, "float64", "29d310f23fad9f90"),
    ],
)
def test_digest(seed, count, dtype, want):
    values = TorchGenerator(seed).randn((count,), dtype)
    assert digest(bfloat16_bits(values) if dtype == "bfloat16" else values) == want


def test_mixed_sequence_keeps_the_scalar_twin():
    generator = TorchGenerator(42)
    values = np.concatenate([generator.randn((n,)) for n in (5, 20, 3)])
    assert digest(values) == "a19bc39020315d1f"


def test_first_words():
    words = TorchGenerator(42).randn((16,)).view(np.uint32)
    assert [f"{w:08x}" for w in words[:3]] == ["3ff6a529", "3fbe5f53", "3f669567"]


def test_only_the_low_seed_bits_matter():
    assert (TorchGenerator(2**32 + 7).randn((64,)) == TorchGenerator(7).randn((64,))).all()
    assert (TorchGenerator(-1).randn((64,)) == TorchGenerator(2**64 - 1).randn((64,))).all()


def test_shape_does_not_matter():
    flat = TorchGenerator(3).randn((2 * 3 * 128,))
    assert (TorchGenerator(3).randn((2, 3, 128)).reshape(-1) == flat).all()


def test_draws_of_whole_blocks_concatenate():
    generator = TorchGenerator(9)
    parts = np.concatenate([generator.randn((64,)), generator.randn((32,))])
    assert (parts == TorchGenerator(9).randn((96,))).all()


def test_values_are_standard_normal():
    values = TorchGenerator(1).randn((400_000,))
    assert abs(values.mean()) < 0.01  # five standard errors of 400,000 draws are 0.008
    assert abs(values.std() - 1) < 0.01


def test_empty_draw():
    assert TorchGenerator(0).randn((0, 4)).shape == (0, 4)


def test_unknown_dtype_is_refused():
    with pytest.raises(OptionError, match="int8"):
        TorchGenerator(0).randn((4,), "int8")
