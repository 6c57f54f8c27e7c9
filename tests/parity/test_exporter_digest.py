"""The digest that keeps exported graphs sees what decides them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt_export.engines import graphs


def write(folder: Path, **sources: str) -> dict[str, Path]:
    files = {}
    for name, text in sources.items():
        files[f"p.{name}"] = folder / f"{name}.py"
        files[f"p.{name}"].write_text(text)
    return files


def test_only_what_exporters_reach_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(
        tmp_path, a="from p import b\n", b="def f():\n    import p.c\n", c="", d="import p.a\n"
    )
    monkeypatch.setattr(graphs, "_sources", lambda: files)
    monkeypatch.setattr(graphs, "EXPORTERS", ("p.a",))
    digest = graphs.exporter_sha256.__wrapped__
    before = digest()
    files["p.d"].write_text("import p.a, p.b\n")
    assert digest() == before
    files["p.c"].write_text("x = 1\n")
    assert digest() != before
