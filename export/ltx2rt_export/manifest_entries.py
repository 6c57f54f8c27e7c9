"""What a bundle's manifest says of each component: its graph, and where every weight lies."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx2rt.bundle.manifest import (
    UNMASKED,
    ComponentEntry,
    Place,
    Source,
    UnmaskedEntry,
    WeightEncoding,
    WeightRef,
)
from ltx2rt.weights.safetensors import SafetensorsFile, TensorEntry
from ltx2rt_export.engines.build import manifest_tensors
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.prepare import Prepared


class SourceTable:
    """The weight files of a bundle, numbered in order of first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sources: list[Source] = []
        self._numbers: dict[Path, int] = {}

    def ref(self, entry: TensorEntry) -> WeightRef:
        """The manifest's form of a tensor's place."""
        encoding = entry.encoding
        if encoding is None:
            return WeightRef(**self._place(entry))
        return WeightRef(
            **self._place(entry),
            encoding=WeightEncoding(
                format=encoding.format,
                shape=encoding.shape,
                group=encoding.group,
                parts={n: Place(**self._place(e)) for n, e in sorted(encoding.parts.items())},
            ),
        )

    def _place(self, entry: TensorEntry) -> dict[str, Any]:
        path = entry.path.absolute()
        if path not in self._numbers:
            file = SafetensorsFile(path)
            inside = path.is_relative_to(self._folder)
            self._numbers[path] = len(self.sources)
            self.sources.append(
                Source(
                    path=str(path.relative_to(self._folder) if inside else path),
                    bytes=file.file_bytes,
                    header_sha256=file.header_sha256,
                    modified_ns=0 if inside else path.stat().st_mtime_ns,
                )
            )
        return {
            "source": self._numbers[path],
            "dtype": entry.dtype,
            "shape": entry.shape,
            "offset": entry.offset,
            "length": entry.length,
        }


def entry_of(
    part: Prepared, graph: ExportedGraph, digest: str, table: SourceTable
) -> ComponentEntry:
    """What the manifest says of one component, whose graph has this digest."""
    component = graph.component
    layers: Sequence[Mapping[str, TensorEntry]] = component.layers or (component.weights,)
    return ComponentEntry(
        graph=f"graphs/{component.name}.onnx",
        graph_sha256=digest,
        precision=part.precision,
        inputs=manifest_tensors(component.inputs),
        outputs=manifest_tensors(component.outputs),
        weight_binding=component.weight_binding,
        transposed=tuple(sorted(graph.transposed)),
        layers=tuple({n: table.ref(e) for n, e in sorted(layer.items())} for layer in layers),
        options=dict(component.options),
        weight_dtypes=part.weight_dtypes,
        quantized=dict(part.quantized),
    )


def with_unmasked(entry: ComponentEntry, graph: ExportedGraph, work: Path) -> ComponentEntry:
    """The entry of a component that has a second graph, which is written."""
    data = graph.model.SerializeToString(deterministic=True)
    place = entry.graph.removesuffix(".onnx") + f"{UNMASKED}.onnx"
    (work / place).write_bytes(data)
    kept = {spec.name for spec in graph.component.inputs}
    made = UnmaskedEntry(
        graph=place,
        graph_sha256=hashlib.sha256(data).hexdigest(),
        leaves_out=tuple(t.name for t in entry.inputs if t.name not in kept),
    )
    return dataclasses.replace(entry, unmasked=made)
