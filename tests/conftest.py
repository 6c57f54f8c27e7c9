"""Fixtures of all tiers: the files of the demo model; which tests run only when asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.kept_graphs import graph_names, unpack
from tests.once import made_once

# graphs that tests export are kept for the next run, apart from those of the user's own builds
os.environ.setdefault("LTX2RT_CACHE", str(Path.home() / ".cache" / "ltx2rt-tests"))

# tests measure no time: a busy machine would make them fail
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


#: marker -> why its tests are skipped unless somebody asks for them
WHEN_ASKED = {
    "fuzz": "minutes of random inputs, kills or builds: pytest -m fuzz tests/parity",
    "graphs": "exports every shipped graph again: pytest -m graphs tests/parity",
    "kernel_matrix": "more architectures: pytest -m kernel_matrix tests/kernels",
    "notebooks": "runs the notebooks of examples: pytest -m notebooks tests/parity",
    "server": "a real server (Triton, a browser, Ray): pytest -m server tests/parity",
    "site": "builds the site: pytest -m site tests/unit",
    "simulator_matrix": "a larger matrix: pytest -m simulator_matrix tests/simulator",
}


#: the graphs that the cache held before this run
BEFORE = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """The graphs that are kept with the tests lie in the cache before anything runs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        cache = Path(os.environ["LTX2RT_CACHE"])
        unpack(cache)
        config.stash[BEFORE] = graph_names(cache)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """How many graphs this run had to export: the slowest thing that tests do."""
    before = config.stash.get(BEFORE, None)
    new = set() if before is None else graph_names(Path(os.environ["LTX2RT_CACHE"])) - before
    if new:
        terminalreporter.write_line(f"{len(new)} graphs were exported; see tests/kept_graphs.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes, or sets up an environment of its own, runs when somebody asks for it."""
    asked = str(config.getoption("markexpr"))
    for marker, what in WHEN_ASKED.items():
        if marker in asked:
            continue
        for item in items:
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=what))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model's files, written once a run; read-only to tests."""
    from ltx2rt_export.demo import write_demo_model

    return made_once(tmp_path_factory, "demo-model", write_demo_model)
