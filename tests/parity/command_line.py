"""Run the command line in process, and check how it fails."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

import ltx2rt_export.bundle as export_bundle
from ltx2rt.bundle.manifest import content_id, read_manifest
from ltx2rt.cli.__main__ import main
from ltx2rt.env import cache_dir
from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt_export import onnx as exporter
from ltx2rt_export.catalog import traced_components
from ltx2rt_export.component import Component
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache
from ltx2rt_export.graph import ExportedGraph


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def ltx2rt(*arguments: object) -> Outcome:
    """One run of the command, its streams captured."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


#: flags that mean more the more often they are given
REPEATABLE = {"--image", "--lora", "--reference", "--seed", "--stage-2-lora"}


def instead(*arguments: object) -> list[str]:
    """Arguments in which a flag that is given again replaces the earlier one, which a command
    refuses.
    """
    parts: list[list[str]] = [[]]
    for word in map(str, arguments):
        if re.match(r"-[^\d]", word):
            parts.append([])
        parts[-1].append(word)
    last = {part[0]: part for part in parts if part}
    kept = [p for p in parts if p and (p[0] in REPEATABLE or last[p[0]] is p)]
    return [word for part in kept for word in part]


def expect_user_error(outcome: Outcome, *parts: object) -> None:
    """Exit code 2, one message that says all `parts`, and nothing else."""
    assert outcome.code == 2, outcome
    assert outcome.err.count("ltx2rt: error:") == 1
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for part in parts:
        assert str(part) in outcome.err


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Nothing appears in a folder, nothing goes, no file changes."""

    def listing() -> dict[Path, bytes | None]:
        return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}

    before = listing()
    yield
    after = listing()
    assert sorted(after) == sorted(before)
    assert after == before


def edited_bundle(bundle: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle whose manifest `edit` changed."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "manifest.json").read_text())
    edit(manifest)
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # it is no manifest any more
        manifest["bundle_id"] = content_id(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def build_flags(model: dict[str, Path]) -> list[object]:
    """The model's files as `ltx2rt build` takes them."""
    return [x for name, path in model.items() for x in (f"--{name.replace('_', '-')}", path)]


Export = Callable[..., ExportedGraph]


def use_export(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build exports with this function, whichever modules imported the real one."""
    for name, module in list(sys.modules.items()):
        if name.startswith("ltx2rt_export.") and hasattr(module, "export_component"):
            monkeypatch.setattr(module, "export_component", export)
    monkeypatch.setattr(export_bundle, "components_of", traced_components)  # none with graphs
    # what it gives is not kept for builds that export by themselves
    monkeypatch.setattr(GraphCache, "export", lambda _, component, *rest: export(component, *rest))


def graphs_as_exported(bundle: Path) -> Callable[[Component], onnx.ModelProto]:
    """Copies of a bundle's float32 graphs as they are exported: those of transformer blocks, whose
    attention a bundle for ONNX Runtime has otherwise, are traced, whatever is patched from here
    on, and kept for the next test.
    """
    entries = read_manifest(bundle).components
    real, keep = exporter.export_component, GraphCache.export

    def graph(component: Component) -> onnx.ModelProto:
        entry = entries[component.name]
        if component.name not in TRANSFORMER_BLOCKS:
            return onnx.load(str(bundle / entry.graph), load_external_data=False)
        model = onnx.ModelProto()
        kept = GraphCache(EngineCache(cache_dir()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "export_component", real)
            model.CopyFrom(keep(kept, component, "float32").model)
        return model

    return graph


def use_graphs_of(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exporting gives this bundle's own graphs: the model must have the same shapes."""
    entries, graph = read_manifest(bundle).components, graphs_as_exported(bundle)

    def export(component: Component, *_: object) -> ExportedGraph:
        names = tuple(component.weights)
        transposed = frozenset(entries[component.name].transposed)
        return ExportedGraph(component, graph(component), names, transposed)

    use_export(export, monkeypatch)
    return export


def only_components(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let `ltx2rt verify` look at these components alone: all of them take ten seconds."""
    make = export_bundle.make_components

    def chosen(*arguments: Any) -> list[Component]:
        return [c for c in make(*arguments) if c.name in names]

    monkeypatch.setattr(export_bundle, "make_components", chosen)


SMALL = ("--height", 64, "--width", 64, "--num-frames", 9, "--threads", 1)
