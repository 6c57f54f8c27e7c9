"""`make graphs`: export the components of the released models and of the demo model, and put them
into `ltx2rt_export/shipped/graphs`. What did not change since the last time is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.sparse_model import write_sparse_model
from ltx2rt_export.catalog import Row, factory_module, rows_of
from ltx2rt_export.checkpoint import ModelFiles, open_model
from ltx2rt_export.demo import write_demo_model
from ltx2rt_export.engines.graphs import package_versions
from ltx2rt_export.modules.meta import tables_of
from ltx2rt_export.onnx import export_component
from ltx2rt_export.quantize.component_graph import FLOAT32_COMPONENTS
from ltx2rt_export.shipped.facts import facts_of
from ltx2rt_export.shipped.file import (
    FOLDER,
    SCHEMA,
    ShippedComponent,
    ShippedGraph,
    path_of,
    read_shipped,
    tables_out,
    write_shipped,
)
from ltx2rt_export.shipped.find import tensors_of
from ltx2rt_export.sources import graph_sources

#: of graphs; every precision but fp16 starts from one of them
DTYPES = ("float32", "bfloat16")

#: of the released models, the newest first
ORDER = ("2.3", "2.5", "2")


def models(folder: Path) -> Iterator[ModelFiles]:
    """The models whose graphs are shipped, as files whose weights are holes."""
    demo = write_demo_model(folder / "demo")
    yield open_model(demo["checkpoint"], demo["gemma"], demo["spatial_upsampler"])
    for generation in ORDER:
        yield open_model(**write_sparse_model(folder / generation, generation))


def rows(folder: Path) -> Iterator[tuple[Row, ModelFiles, Path]]:
    """Every component to ship, once, with its file."""
    seen = set()
    for files in models(folder):
        for row in rows_of(files):
            facts = facts_of(row.name, files)
            assert facts is not None, f"{row.name} of {files.checkpoint.name} has unknown facts"
            if (path := path_of(row.name, facts)) not in seen:
                seen.add(path)
                yield row, files, path


def sources_of(name: str) -> dict[str, str]:
    """The exporter's modules that decide the graphs of a component, with digests."""
    return graph_sources([factory_module(name)])


def ship(
    row: Row, files: ModelFiles, dtypes: tuple[str, ...] = DTYPES
) -> tuple[ShippedComponent, bytes]:
    """Export a component in every dtype."""
    component = row.make(files)
    tables = tables_of(component.network)
    if row.name in FLOAT32_COMPONENTS:
        dtypes = ("float32",)
    graphs, data = {}, b""
    for dtype in dtypes:
        graph = export_component(component, dtype)
        stored = tables_out(graph.model, tables).SerializeToString(deterministic=True)
        graphs[dtype] = ShippedGraph(
            inputs=graph.component.inputs,
            outputs=graph.component.outputs,
            weights=graph.weights,
            transposed=tuple(sorted(graph.transposed)),
            digest=hashlib.sha256(stored).hexdigest(),
            offset=len(data),
            length=len(stored),
        )
        data += stored
    places = {
        id(entry): (role, name)
        for role in row.roles
        for name, entry in tensors_of(files, role).items()
    }
    layers = component.layers or (component.weights,)
    facts = facts_of(row.name, files)
    assert facts is not None
    about = ShippedComponent(
        schema=SCHEMA,
        component=row.name,
        facts=facts,
        inputs=component.inputs,
        outputs=component.outputs,
        shapes={name: entry.shape for name, entry in component.weights.items()},
        layers=tuple({n: places[id(e)] for n, e in layer.items()} for layer in layers),
        repeated=bool(component.layers),
        weight_binding=component.weight_binding,
        options=component.options,
        sources=sources_of(row.name),
        packages=package_versions(),
        graphs=graphs,
    )
    return about, data


def is_current(path: Path, row: Row) -> bool:
    """Whether a file was made by this exporter with these packages."""
    if not path.exists():
        return False
    about = read_shipped(path).about
    return (
        about.schema == SCHEMA
        and about.packages == package_versions()
        and about.sources == sources_of(row.name)
    )


def main() -> None:
    """Write what is missing or has changed, and remove what nobody needs any more."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shipped_graphs")
    parser.add_argument("--all", action="store_true", help="also what did not change")
    everything = parser.parse_args().all
    FOLDER.mkdir(exist_ok=True)
    kept = set()
    with tempfile.TemporaryDirectory() as folder:
        for row, files, path in rows(Path(folder)):
            kept.add(path)
            if everything or not is_current(path, row):
                began = time.perf_counter()
                write_shipped(path, *ship(row, files))
                seconds = time.perf_counter() - began
                print(
                    f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {seconds:.0f} s", flush=True
                )
    for path in set(FOLDER.glob("*")) - kept:
        path.unlink()
    size = sum(path.stat().st_size for path in kept)
    print(f"{len(kept)} files, {size / 1e6:.2f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
