"""Our noise against the installed torch's CPU generator, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltx2rt.sampling.noise import TorchGenerator

AVX2 = "AVX" in torch.backends.cpu.get_cpu_capability()
pytestmark = pytest.mark.skipif(
    not AVX2, reason="torch without AVX2 uses other elementary functions"
)


def reference(generator: torch.Generator, count: int, dtype: str) -> np.ndarray:
    values = torch.randn(count, generator=generator, dtype=getattr(torch, dtype))
    return values.float().numpy() if dtype == "bfloat16" else values.numpy()


@pytest.mark.parametrize("seed", [0, 42, -1, 2**32 + 7, 2**63 - 1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_bit_equal(seed, dtype):
    for count in (1, 15, 16, 17, 31, 128, 1000, 40_007):
        ours = TorchGenerator(seed).randn((count,), dtype)
        want = reference(torch.Generator().manual_seed(seed), count, dtype)
        assert ours.dtype == want.dtype
        assert np.array_equal(ours, want), count
        assert np.array_equal(np.signbit(ours), np.signbit(want)), count


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mixed_sequences(seed):
    plan = np.random.default_rng(seed)
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for _ in range(40):
        count = int(plan.choice([1, 2, 3, 7, 15, 16, 20, 48, 100]))
        dtype = str(plan.choice(["float32", "float64", "bfloat16", "float16"]))
        want = reference(theirs, count, dtype)
        assert np.array_equal(ours.randn((count,), dtype), want), (count, dtype)


def test_large_draw():
    """Enough values to meet the rare fused-multiply-add ties that need the exact path."""
    ours = TorchGenerator(123).randn((2_000_000,))
    want = reference(torch.Generator().manual_seed(123), 2_000_000, "float32")
    assert np.array_equal(ours.view(np.int32), want.view(np.int32))
