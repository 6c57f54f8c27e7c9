"""How engines take quantised weights: layouts, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from ltx2rt.weights.codecs.engine_formats import ENGINE_FORMATS
from ltx2rt.weights.safetensors import DTYPES

#: largest relative RMS error on Gaussian weights: half a step of E4M3, E2M1, INT8, INT4
ERRORS = {"fp8": 0.03, "nvfp4": 0.11, "int8": 0.01, "int4": 0.14}


@pytest.mark.parametrize("name", ENGINE_FORMATS)
def test_parts_are_as_the_table_says(name: str) -> None:
    kind = ENGINE_FORMATS[name]
    weight = np.random.default_rng(0).standard_normal((48, 256)).astype(np.float32)
    parts = kind.encode(weight)
    arrays = dict(DTYPES.values())
    assert list(parts) == list(kind.dtypes) == list(kind.shapes(48, 256))
    for part, array in parts.items():
        assert array.shape == kind.shapes(48, 256)[part]
        assert array.dtype == arrays[kind.dtypes[part]]
    values = kind.decode(parts)
    error = np.sqrt(np.mean((values - weight) ** 2) / np.mean(weight**2))
    assert ERRORS[name] / 10 < error < ERRORS[name]


@pytest.mark.parametrize("name", ENGINE_FORMATS)
def test_zeros_stay_zeros(name: str) -> None:
    kind = ENGINE_FORMATS[name]
    np.testing.assert_array_equal(kind.decode(kind.encode(np.zeros((8, 32), np.float32))), 0)


def test_nvfp4_has_the_first_element_low() -> None:
    """The worked example of spec/quantization.md §4.3, nibbles swapped."""
    row = np.array([0.1 * (i + 1) * (-1) ** i for i in range(16)], np.float32)
    parts = ENGINE_FORMATS["nvfp4"].encode(row[None])
    assert parts["weight"].tobytes().hex() == "91b2c4d5e5e6f6f7"
    assert parts["weight_scale"].item() == 0x7E  # 448
    assert parts["weight_scale_2"].item() == pytest.approx(1.6 / 2688, rel=1e-6)


def test_int4_lies_inputs_first() -> None:
    """Element (input k, output n) is nibble n % 2 of byte `[k, n / 2]`."""
    weight = np.arange(-7, 8, dtype=np.float32)[:8, None] * np.ones((1, 4), np.float32)
    weight[:, 1] = 7  # every row has scale 1
    parts = ENGINE_FORMATS["int4"].encode(weight)
    assert parts["weight"].shape == (4, 4)
    np.testing.assert_array_equal(parts["weight_scale"], np.ones((1, 8)))
    want = [(int(a) & 15) | ((int(b) & 15) << 4) for a, b in weight[:, 0].reshape(4, 2)]
    np.testing.assert_array_equal(parts["weight"][0], want)
    np.testing.assert_array_equal(parts["weight"][1], [0x77] * 4)
