"""The keys of exported graphs see what decides these, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt_export import sources
from ltx2rt_export.catalog import COMPONENTS, factory_module
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache


def write(folder: Path, **texts: str) -> dict[str, Path]:
    files = {}
    for name, text in texts.items():
        files[f"p.{name}"] = folder / f"{name}.py"
        files[f"p.{name}"].write_text(text)
    return files


def test_only_what_is_reached_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(
        tmp_path, a="from p import b\n", b="def f():\n    import p.c\n", c="", d="import p.a\n"
    )
    monkeypatch.setattr(sources, "_sources", lambda: files)
    assert set(sources.imported_modules(["p.a"])) == {"p.a", "p.b", "p.c"}


def test_every_component_names_its_module() -> None:
    for row in COMPONENTS:
        assert factory_module(row.name) in sources._sources()


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("ltx2rt_export.modules.transformer", True),
        ("ltx2rt_export.modules.transformer_ends", True),
        ("ltx2rt_export.modules.adaln", True),
        ("ltx2rt_export.optimize", True),
        ("ltx2rt.latents.rope", True),
        ("ltx2rt_export.modules.vocoder", False),
        ("ltx2rt.lora.files", False),
    ],
)
def test_a_changed_module_changes_the_keys_of_its_components(
    module: str,
    counts: bool,
    demo_model: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = open_model(**demo_model)
    row = next(row for row in COMPONENTS if row.name == "transformer_tail")
    component, cache = row.make(files), GraphCache.of_files(EngineCache(tmp_path), files)
    before = cache._key(component, "float32")
    changed = tmp_path / "changed.py"
    found = sources._sources()
    changed.write_text(found[module].read_text() + "\nX = 1\n")
    monkeypatch.setattr(sources, "_sources", lambda: {**found, module: changed})
    sources.source_digest.cache_clear()
    try:
        assert (cache._key(component, "float32") != before) == counts
    finally:
        monkeypatch.undo()
        sources.source_digest.cache_clear()
