"""The step of a build that decodes what it takes from GGUF files.

A bundle points into safetensors files only, so these weights are written into the bundle, one
tensor at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ltx2rt.engine import Array
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry, convert
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.component import Component
from ltx2rt_export.layouts.gguf_file import is_gguf

#: what decoded tensors are written to, in the bundle's weights/
OVERLAY = "gguf.safetensors"


def decode_gguf(
    components: Sequence[Component], folder: Path, dtypes: Mapping[str, str], *, resume: bool
) -> list[Component]:
    """Components whose tensors of GGUF files lie in `folder/gguf.safetensors`, one at a time.

    Args:
        dtypes: component -> what decoded weights are rounded to, once: what its engine takes. Plain
            tensors keep theirs.
        resume: what is there was finished by a build that was stopped.
    """
    wanted = {
        (e.path, e.offset): (e, dtypes[component.name])
        for component in components
        for layer in (component.weights, *component.layers)
        for e in layer.values()
        if is_gguf(e)
    }
    if not wanted:
        return list(components)
    maps = MappedFiles()
    folder.mkdir(parents=True, exist_ok=True)
    if not (resume and (folder / OVERLAY).exists()):
        write_safetensors(
            folder / OVERLAY,
            {
                entry.name: (
                    dtype if entry.encoding else entry.dtype,
                    entry.shape,
                    _values(maps, entry, dtype),
                )
                for entry, dtype in wanted.values()
            },
            {"decoded_from": "; ".join(sorted({e.path.name for e, _ in wanted.values()}))},
        )
    overlay = SafetensorsFile(folder / OVERLAY)

    def moved(layer: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        return {
            name: dataclasses.replace(overlay[e.name], name=e.name) if is_gguf(e) else e
            for name, e in layer.items()
        }

    return [
        dataclasses.replace(
            component,
            weights=moved(component.weights),
            layers=tuple(moved(layer) for layer in component.layers),
        )
        for component in components
    ]


def _values(maps: MappedFiles, entry: TensorEntry, dtype: str) -> Iterator[Array]:
    if entry.encoding is None:
        yield maps.raw(entry)
    else:
        values, source = maps.values(entry)
        yield convert(values, source, dtype, entry.name)
