"""How small a card may be for a bundle, as the plan says."""

from __future__ import annotations

from pathlib import Path

import pytest

import ltx2rt
from ltx2rt.bundle import stage_plan
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.memory_plan import LIBRARY_SHARE, plan_memory
from ltx2rt.config import RuntimeConfig
from tests.simulator.driver import Setup, simulated

_LEAST: dict[Path, int] = {}


def least_memory_of(bundle: Path) -> int:
    """Of a card that holds two layers at a time; no simulation may run."""
    if bundle not in _LEAST:
        with simulated(Setup(memory_bytes=8 << 30)), pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage_plan, "plan_lanes", plan_memory)  # there is no room for one
            loader = Loader(ltx2rt.open_bundle(bundle))
            plan = loader._card_of(RuntimeConfig()).plan
            loader.close()
        regions = plan.regions
        least = regions.total - regions.layers + max(sum(sizes) for sizes in plan.places.values())
        _LEAST[bundle] = -(-least * LIBRARY_SHARE // (LIBRARY_SHARE - 1)) + 4096
    return _LEAST[bundle]
