"""A bundle of the demo model, for the tiers that have torch (their `conftest.py` names it)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.once import made_once


@pytest.fixture(scope="session")
def demo_bundle(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the demo model, built through the command line once a run; read-only."""

    def build(folder: Path) -> dict[str, Path]:
        from ltx2rt.cli.__main__ import main

        arguments = [
            "build", "--quiet",
            "--checkpoint", str(demo_model["checkpoint"]),
            "--gemma", str(demo_model["gemma"]),
            "--spatial-upsampler", str(demo_model["spatial_upsampler"]),
            "-o", str(folder / "demo.bundle"),
        ]  # fmt: skip
        assert main(arguments) == 0
        return {"bundle": folder / "demo.bundle"}

    return made_once(tmp_path_factory, "demo-bundle", build)["bundle"]
