"""Fixtures shared by unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model's files, written once a session; read-only to tests."""
    from ltx2rt_export.demo import write_demo_model

    return write_demo_model(tmp_path_factory.mktemp("demo"))
