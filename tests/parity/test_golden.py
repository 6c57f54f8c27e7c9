"""Every golden case of the directory at hand, on both backends, as one test each."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.parity.golden import (
    BACKENDS,
    Runner,
    case_name,
    component_files,
    golden_root,
    load_case,
    run_case,
)
from tests.parity.pipelines import pipeline_files, run_pipeline_case

ROOT = golden_root() or Path("absent")
COMPONENTS = component_files(ROOT) if ROOT.is_dir() else []
PIPELINES = pipeline_files(ROOT) if ROOT.is_dir() else []


@cache
def runner(backend: str) -> Runner:
    return Runner(ROOT, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", COMPONENTS, ids=case_name)
def test_component(path: Path, backend: str) -> None:
    result = run_case(load_case(path), runner(backend))
    if result.skipped is not None:
        pytest.skip(result.skipped)
    assert result.passed, result.detail


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_pipeline(path: Path, backend: str) -> None:
    result = run_pipeline_case(path, runner(backend))
    if result.skipped is not None:
        pytest.skip(result.skipped)
    assert result.passed, result.detail


def test_goldens_are_present() -> None:
    assert COMPONENTS, "no golden directory: not even the committed subset"
