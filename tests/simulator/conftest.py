"""Fixtures of the simulator's own tests."""

from __future__ import annotations

from tests.parity.demo_bundle import demo_bundle
from tests.simulator.fixtures import engine_bundle, gpu, simulate, tensorrt_rtx

__all__ = ["demo_bundle", "engine_bundle", "gpu", "simulate", "tensorrt_rtx"]
