"""Graphs that come with ltx2rt: they are those of this exporter, and a build needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import uses_external_data
from onnx.numpy_helper import to_array

from benchmarks.shipped_graphs import rows, ship, sources_of
from ltx2rt.plain_data import to_plain
from ltx2rt_export import sources
from ltx2rt_export.catalog import COMPONENTS
from ltx2rt_export.checkpoint import ModelFiles, open_model
from ltx2rt_export.component import Component
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache, package_versions
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.modules.tables import Table
from ltx2rt_export.shipped.file import (
    FOLDER,
    Shipped,
    ShippedComponent,
    read_shipped,
    tables_in,
    tables_out,
)
from ltx2rt_export.shipped.find import shipped_component, shipped_graph

#: runs the command line where PyTorch cannot be imported
WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from ltx2rt.cli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def demo(demo_model: dict[str, Path]) -> ModelFiles:
    return open_model(**demo_model)


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def told(about: ShippedComponent) -> dict[str, Any]:
    """What a file says about its component, without its graphs' bytes: dtypes may lie in another
    order.
    """
    plain: dict[str, Any] = to_plain(about)
    for graph in plain["graphs"].values():
        for bytes_ in ("offset", "length", "digest"):
            del graph[bytes_]
    return plain


def assert_same(again: ShippedComponent, data: bytes, shipped: Shipped) -> None:
    """The same graphs, but for the last bit of constants that PyTorch computes while it exports
    (frequencies of timesteps): that depends on the processor's vectors.
    """
    assert told(again) == told(shipped.about)
    for dtype, graph in again.graphs.items():
        before = shipped.about.graphs[dtype]
        if graph.digest == before.digest:
            continue
        models = [
            onnx.load_model_from_string(held[g.offset : g.offset + g.length])
            for held, g in ((data, graph), (shipped.data, before))
        ]
        constants = [{c.name: c for c in model.graph.initializer} for model in models]
        assert constants[0].keys() == constants[1].keys()
        for name, constant in constants[0].items():
            if uses_external_data(constant):  # a weight, which the graph names alone
                assert constant == constants[1][name]
                continue
            got, want = to_array(constant), to_array(constants[1][name])
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, atol=0, rtol=2**-22, err_msg=name)
        for model in models:
            del model.graph.initializer[:]
        assert models[0] == models[1], (again.component, dtype)


def test_files_are_of_this_exporter() -> None:
    """Red after a change of the exporter: run `make graphs`."""
    files = sorted(FOLDER.glob("*.xz"))
    assert files
    abouts = {path.name: read_shipped(path).about for path in files}
    stale = [n for n, about in abouts.items() if about.sources != sources_of(about.component)]
    assert not stale


@pytest.mark.parametrize("name", ["transformer_tail"])
def test_exporting_again_gives_the_same(demo: ModelFiles, name: str) -> None:
    shipped = shipped_component(name, demo)
    assert shipped is not None
    assert shipped.shipped is not None
    about = shipped.shipped.about
    if about.packages != package_versions():
        pytest.skip(f"the graphs were exported with {about.packages}")
    row = next(r for r in COMPONENTS if r.name == name)
    assert_same(*ship(row, demo), shipped.shipped)


@pytest.mark.graphs
def test_exporting_everything_again_gives_the_same(tmp_path: Path) -> None:
    paths = set()
    for row, files, path in rows(tmp_path):
        paths.add(path)
        shipped = read_shipped(path)
        if shipped.about.packages != package_versions():
            pytest.skip(f"the graphs were exported with {shipped.about.packages}")
        assert_same(*ship(row, files), shipped)
    assert paths == set(FOLDER.glob("*.xz"))


def test_components_are_those_of_their_modules(demo: ModelFiles) -> None:
    for row in COMPONENTS:
        if row.name in ("text_head", "transformer_block", "audio_decoder"):
            made, found = row.make(demo), shipped_component(row.name, demo)
            assert found is not None
            for name in ("inputs", "outputs", "weights", "layers", "weight_binding"):
                assert getattr(found, name) == getattr(made, name), (row.name, name)
            assert to_plain(found.options) == to_plain(made.options)


def test_a_build_needs_no_torch(demo_model: dict[str, Path], tmp_path: Path) -> None:
    flags = [f"--{n.replace('_', '-')}={p}" for n, p in demo_model.items()]
    done = without_torch("build", *flags, "-o", tmp_path / "b", "--quiet")
    assert done.returncode == 0, done.stderr
    small = ("--height", 64, "--width", 64, "--num-frames", 9, "--quiet")
    done = without_torch(
        "generate", tmp_path / "b", "--prompt", "a bell", *small, "-o", tmp_path / "clip.mp4"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clip.mp4").stat().st_size > 1000
    done = without_torch("build", *flags, "--backend", "tensorrt-rtx", "--precision", "fp8",
                         "--dry-run")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_other_models_say_what_they_need(demo_model: dict[str, Path], tmp_path: Path) -> None:
    gemma = tmp_path / "gemma"
    gemma.mkdir()
    for path in demo_model["gemma"].iterdir():
        (gemma / path.name).symlink_to(path)
    config = json.loads((gemma / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-5
    (gemma / "config.json").unlink()
    (gemma / "config.json").write_text(json.dumps(config))
    flags = ("--checkpoint", demo_model["checkpoint"], "--gemma", gemma)
    done = without_torch("build", *flags, "-o", tmp_path / "b", "--quiet")
    assert done.returncode == 2
    assert "needs the package" in done.stderr
    assert "export" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_changed_exporter_is_not_overruled(
    demo: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shipped_component("transformer_tail", demo) is not None
    monkeypatch.setattr(sources, "source_digest", lambda _: "another")
    assert shipped_component("transformer_tail", demo) is None


def test_a_dtype_that_was_not_shipped_is_exported(
    demo: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = shipped_component("transformer_tail", demo)
    assert component is not None
    assert shipped_graph(component, "float16") is None

    def export(traced: Component, dtype: str) -> ExportedGraph:
        assert traced.network is not None
        assert dtype == "float16"
        model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
        return ExportedGraph(traced, model, tuple(traced.weights), frozenset(), dtype)

    monkeypatch.setattr("ltx2rt_export.onnx.export_component", export)
    graph = GraphCache.of_files(EngineCache(tmp_path), demo).export(component, "float16")
    assert graph.component.weights == component.weights


def test_tables_are_computed_again() -> None:
    table = Table("stft_kernels", {"n_fft": 64})
    values = table.values()
    other = np.arange(values.size, dtype=np.float32).reshape(values.shape)
    named = {"a": values, "b": other}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in named.items()]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    model = onnx.helper.make_model(graph)
    small = tables_out(model, [table])
    assert len(small.SerializeToString()) < len(model.SerializeToString()) - values.nbytes + 500
    assert tables_in(small) == model
