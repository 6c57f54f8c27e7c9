"""Fixtures of all tiers: the files of the demo model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.once import made_once

# graphs that tests export are kept for the next run, apart from those of the user's own builds
os.environ.setdefault("LTX2RT_CACHE", str(Path.home() / ".cache" / "ltx2rt-tests"))

# tests measure no time: a busy machine would make them fail
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model's files, written once a run; read-only to tests."""
    from ltx2rt_export.demo import write_demo_model

    return made_once(tmp_path_factory, "demo-model", write_demo_model)
