"""Every row of the table of precisions is complete: format, encoder, rewrite and emulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltx2rt.weights.codecs.engine_formats import ENGINE_FORMATS
from ltx2rt.weights.precision import PRECISIONS, Precision, float_precision
from ltx2rt.weights.safetensors import DTYPES
from ltx2rt_export.onnx import TORCH_DTYPES
from ltx2rt_export.quantize.emulate import to_torch
from ltx2rt_export.quantize.rewrites import REWRITES
from tests.tolerances import QUANT_LOSS

QUANTIZING = [row for row in PRECISIONS.values() if row.format is not None]
FLOAT = [row for row in PRECISIONS.values() if row.format is None]
OUT, WIDTH = 64, 256


def test_rows_that_quantise_have_a_rewrite_and_the_others_none() -> None:
    assert list(REWRITES) == [row.name for row in QUANTIZING]
    assert all(REWRITES[row.name].precision is row for row in QUANTIZING)
    assert set(QUANT_LOSS) == set(REWRITES)  # each graph is compared with its emulation


@pytest.mark.parametrize("row", FLOAT, ids=lambda row: row.name)
def test_float_rows(row: Precision) -> None:
    item_bytes = {name: dtype.itemsize for name, dtype in DTYPES.values()}
    assert (float_precision(row.dtype) is row) == (row.stored is None)
    assert row.weight_bytes == item_bytes[row.stored or row.dtype]


@pytest.mark.parametrize("row", QUANTIZING, ids=lambda row: row.name)
def test_encoder_and_emulation(row: Precision) -> None:
    """A linear that is encoded and emulated is nearly the linear; its weight takes what the row
    says.
    """
    rewrite, rng = REWRITES[row.name], np.random.default_rng(0)
    assert ENGINE_FORMATS[rewrite.format.name] is row.format
    assert rewrite.fits(OUT, WIDTH)
    weight = rng.standard_normal((OUT, WIDTH)).astype(np.float32)
    x = rng.standard_normal((5, WIDTH)).astype(np.float32)
    encoded = rewrite.format.encode(weight)
    assert {n: a.shape for n, a in encoded.items()} == rewrite.format.shapes(OUT, WIDTH)
    per_group = sum(a.nbytes for a in encoded.values() if a.size > OUT)
    assert per_group / weight.size == pytest.approx(row.weight_bytes)
    parts = {  # whole codes are bound as [in, out]
        n: to_torch(a.T if a.shape == (OUT, WIDTH) else a, rewrite.format.dtypes[n])
        for n, a in encoded.items()
    }
    if rewrite.static:
        assert rewrite.static_range is not None
        parts["input_scale"] = torch.tensor([np.abs(x).max() / rewrite.static_range])
    dtype = TORCH_DTYPES[row.dtype]
    got = rewrite.linear(torch.from_numpy(x).to(dtype), parts, None).float().numpy()
    want = x @ weight.T
    assert got.shape == want.shape
    lost = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert lost < row.tolerance
