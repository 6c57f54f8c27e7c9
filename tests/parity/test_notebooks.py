"""The notebooks of `examples/` run, and are kept without what a run leaves in them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import ltx2rt
from tests.parity.examples import keep_sessions, use_demo_sizes

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


@pytest.fixture
def desk(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which they run, with a bundle of the name that they look for."""
    (tmp_path / "ltx23.bundle").symlink_to(demo_bundle)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def cells(notebook: Path, kind: str) -> list[str]:
    read: dict[str, Any] = json.loads(notebook.read_text())
    return ["".join(c["source"]) for c in read["cells"] if c["cell_type"] == kind]


@pytest.mark.notebooks
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one after another, in one name space."""
    keep_sessions(monkeypatch)
    use_demo_sizes(monkeypatch)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells(notebook, "code")):
        exec(compile(cell, f"{notebook.name}, cell {number}", "exec"), names)
    named = {path.suffix for path in desk.iterdir()}
    assert named & {".mp4", ".onnx"}


def test_notebooks_are_listed_and_clean() -> None:
    page = (NOTEBOOKS[0].parent / "README.md").read_text()
    for notebook in NOTEBOOKS:
        assert f"| [{notebook.name}]({notebook.name}) |" in page
        read = json.loads(notebook.read_text())
        assert read["nbformat"] == 4
        for cell in read["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
        assert cells(notebook, "markdown")[0].startswith("# ")
        for node in ast.walk(ast.parse("\n".join(cells(notebook, "code")))):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "ltx2rt":
                assert node.attr in ltx2rt.__all__, node.attr


@pytest.mark.notebooks
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_runs_it(notebook: Path, desk: Path) -> None:
    """As Jupyter does, where its client and a kernel are installed."""
    client, formats = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    read = formats.read(notebook, as_version=4)
    formats.validate(read)
    client.NotebookClient(read, timeout=120, resources={"metadata": {"path": str(desk)}}).execute()
    pictures = [
        o for c in read.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", ())
    ]
    assert pictures
