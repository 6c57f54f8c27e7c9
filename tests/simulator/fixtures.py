"""Fixtures over the simulated GPU; a tier that wants them imports them in its `conftest.py`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.once import made_once
from tests.simulator.build import build_engine_bundle
from tests.simulator.driver import Setup, SimulatedDriver, simulated
from tests.simulator.library import SimulatorUnavailableError, load_library
from tests.simulator.tensorrt import make_module

Simulate = Callable[..., SimulatedDriver]
EngineBundle = Callable[..., Path]


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Start a simulation, with the fields of `Setup`; the test fails of problems that it leaves."""
    _skip_without_library()
    with contextlib.ExitStack() as stack:
        drivers: list[SimulatedDriver] = []

        def start(**fields: Any) -> SimulatedDriver:
            assert not drivers, "one simulation a test"
            drivers.append(stack.enter_context(simulated(Setup(**fields))))
            return drivers[0]

        yield start
        left = [p for d in drivers for p in d.problems()]
    assert left == [], "the simulated driver found problems"


@pytest.fixture
def gpu(simulate: Simulate) -> SimulatedDriver:
    """One simulated GPU of 1 GiB."""
    return simulate()


@pytest.fixture
def tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The simulated library, which `import tensorrt_rtx` gives; start a simulation too."""
    module = make_module("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


@pytest.fixture(scope="session")
def engine_bundle(
    demo_model: dict[str, Path], demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> EngineBundle:
    """Bundles of simulated engines of the demo model, for 64x64x9 clips unless the flags name
    others, by precision and further flags of `ltx2rt build`; each made once a run, read-only. Not
    while a simulation runs.
    """
    _skip_without_library()
    cache = os.environ["LTX2RT_CACHE"]  # with the traced graphs; a test may name another by then

    def build(precision: str, *flags: object) -> Path:
        shapes = () if "--shapes" in flags else ("--shapes", "64x64x9")
        name = "-".join(str(part).strip("-") for part in ("simulated", precision, *flags))

        def make(folder: Path) -> dict[str, Path]:
            target = folder / f"{precision}.bundle"
            with simulated(), pytest.MonkeyPatch.context() as patch:
                patch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx"))
                patch.setenv("LTX2RT_CACHE", cache)
                build_engine_bundle(
                    demo_bundle, demo_model, target, *shapes, *flags, precision=precision
                )
            return {"bundle": target}

        return made_once(tmp_path_factory, name, make)["bundle"]

    return build


def _skip_without_library() -> None:
    try:
        load_library()
    except SimulatorUnavailableError as error:
        pytest.skip(f"the simulated GPU cannot run: {error}")
