"""Every golden case of the directory at hand, on both backends, as one test each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.safetensors import SafetensorsFile
from tests.parity.golden import BACKENDS, Runner, component_files, golden_root, load_case, run_case
from tests.parity.pipelines import pipeline_files, run_pipeline_case

ROOT = golden_root() or Path("absent")
COMPONENTS = component_files(ROOT) if ROOT.is_dir() else []
PIPELINES = pipeline_files(ROOT) if ROOT.is_dir() else []


@cache
def runner(backend: str) -> Runner:
    return Runner(ROOT, backend)


def generation(path: Path) -> str:
    """What a case's graphs are exported from: cases of one generation share them."""
    if path.suffix == ".safetensors":
        name = SafetensorsFile(path).metadata.get("checkpoint", "")
        return "-".join(name.split("-")[:2]) or "none"
    model = json.loads(path.read_text())
    return f"ltx-{model['model']}" if isinstance(model, dict) and "model" in model else "none"


def cases(paths: Iterable[Path]) -> list[Any]:
    """(path, backend) pairs; exports of one generation happen in one test process."""
    return [
        pytest.param(
            path,
            backend,
            id=f"{path.stem}-{backend}",
            marks=pytest.mark.xdist_group(
                "torch" if backend == "torch" else f"{backend}-{generation(path)}"
            ),
        )
        for path in paths
        for backend in BACKENDS
    ]


@pytest.mark.parametrize(("path", "backend"), cases(COMPONENTS))
def test_component(path: Path, backend: str) -> None:
    result = run_case(load_case(path), runner(backend))
    if result.skipped is not None:
        pytest.skip(result.skipped)
    assert result.passed, result.detail


@pytest.mark.parametrize(("path", "backend"), cases(PIPELINES))
def test_pipeline(path: Path, backend: str) -> None:
    result = run_pipeline_case(path, runner(backend))
    if result.skipped is not None:
        pytest.skip(result.skipped)
    assert result.passed, result.detail


def test_goldens_are_present() -> None:
    assert COMPONENTS, "no golden directory: not even the committed subset"
