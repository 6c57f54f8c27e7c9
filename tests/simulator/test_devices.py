"""Guidance passes of one clip on several devices, side by side."""

from __future__ import annotations

import numpy as np
import pytest

import ltx2rt
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError, UnsupportedError
from tests.simulator.fixtures import EngineBundle, Simulate
from tests.simulator.test_pipelines import kernels, make_guided

__all__ = ["kernels"]

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")


@pytest.mark.parametrize(
    "count", [2, pytest.param(3, marks=pytest.mark.simulator_matrix),
              pytest.param(4, marks=pytest.mark.simulator_matrix)]
)  # fmt: skip
@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_several_devices_give_what_one_gives(
    simulate: Simulate, engine_bundle: EngineBundle, count: int
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(devices=4, memory_bytes=8 << 30)
    want = make_guided(bundle)
    alone = gpu.counters(0)
    found = make_guided(bundle, devices=tuple(range(count)))
    for name, latent in want.items():
        np.testing.assert_array_equal(found[name], latent, err_msg=name)
    assert found.keys() == want.keys()
    first = gpu.counters(0) - alone
    # 3 steps of 4 passes of 5 parts, captured passes being one launch of a graph
    others = [gpu.counters(number) for number in range(1, count)]
    assert all(c.launches + c.graph_launches > 0 for c in others)
    assert first.launches + first.graph_launches < alone.launches + alone.graph_launches
    for number in range(4):
        counters = gpu.counters(number)
        assert counters.live_bytes == 0
        assert counters.allocations == counters.frees
        assert (counters.launches > 0) == (number < count)


@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_devices_that_are_not_there(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(devices=2, memory_bytes=8 << 30)
    with pytest.raises(UnsupportedError, match=r"device 7 was asked for.* 2 GPUs \(0 to 1\)"):
        make_guided(bundle, devices=(0, 7))
    assert gpu.counters(0).live_bytes == 0


@pytest.mark.parametrize("devices", [(0, 0), (-1, 0)])
def test_devices_are_named_once(devices: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="name each GPU once"):
        RuntimeConfig(devices=devices)
    with pytest.raises(OptionError, match="leave device out"):
        ltx2rt.RuntimeConfig(device=0, devices=(0, 1))
