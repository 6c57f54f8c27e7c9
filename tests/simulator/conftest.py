"""Fixtures of the simulator's own tests, and which of them run when nobody asks."""

from __future__ import annotations

import pytest

from tests.parity.demo_bundle import demo_bundle
from tests.simulator.fixtures import engine_bundle, gpu, simulate, tensorrt_rtx

__all__ = ["demo_bundle", "engine_bundle", "gpu", "simulate", "tensorrt_rtx"]

MATRIX = "simulator_matrix"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if MATRIX in str(config.getoption("markexpr")):
        return
    reason = pytest.mark.skip(reason=f"a larger matrix: pytest -m {MATRIX} tests/simulator")
    for item in items:
        if item.get_closest_marker(MATRIX) is not None:
            item.add_marker(reason)
