"""Pipeline cases of a golden directory (filled in by the pipelines' own parity module)."""

from __future__ import annotations

from pathlib import Path

from tests.parity.golden import Result, Runner


def pipeline_files(root: Path) -> list[Path]:
    """The JSON of every pipeline case, in name order."""
    folder = root / "pipelines"
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [p for p in files if p.with_suffix(".safetensors").exists()]


def run_pipeline_case(path: Path, runner: Runner) -> Result:
    return Result(
        path.stem, runner.backend, False, "pipeline is not supported yet", None, None, "pipeline"
    )
