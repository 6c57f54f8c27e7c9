"""Fixtures of the simulator's own tests."""

from __future__ import annotations

from tests.simulator.fixtures import engine_bundle, gpu, simulate, tensorrt_rtx

__all__ = ["engine_bundle", "gpu", "simulate", "tensorrt_rtx"]
