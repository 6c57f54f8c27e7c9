"""Fixtures of all tiers: the demo model and its bundle, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model's files, written once a session; read-only to tests."""
    from ltx2rt_export.demo import write_demo_model

    return write_demo_model(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def demo_bundle(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the demo model, built through the command line once a session; read-only."""
    from ltx2rt.cli.__main__ import main

    bundle = tmp_path_factory.mktemp("bundle") / "demo.bundle"
    arguments = [
        "build", "--quiet",
        "--checkpoint", str(demo_model["checkpoint"]),
        "--gemma", str(demo_model["gemma"]),
        "--spatial-upsampler", str(demo_model["spatial_upsampler"]),
        "-o", str(bundle),
    ]  # fmt: skip
    assert main(arguments) == 0
    return bundle
