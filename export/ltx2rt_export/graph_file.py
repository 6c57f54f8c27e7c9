"""One component of a bundle as an ONNX file that needs nothing else: for ONNX Runtime, Netron,
trtexec, polygraphy and servers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from ltx2rt import names
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.manifest import ComponentEntry
from ltx2rt.errors import OptionError
from ltx2rt.partial import Partial
from ltx2rt.plain_data import nearest
from ltx2rt_export.engines.stage import StoredWeights
from ltx2rt_export.engines.weights import (
    DATA_FILE,
    weights_as_constants,
    weights_as_inputs,
)
from ltx2rt_export.graph import inputs_to_initializers


def write_graph(
    bundle: Bundle, component: str, output: Path, *, weights: bool = False, layer: int = 0
) -> list[Path]:
    """Write a component's graph.

    Args:
        output: the `.onnx` file.
        weights: put the weights into a file beside it, `<output>.data`; else they are inputs of
            the graph, named as in the manifest.
        layer: whose weights, of a component that runs once a layer.

    Returns:
        the files that were written.

    Raises:
        BundleError: the bundle has no such component.
        OptionError: no component is called so, or it has no such layer.
    """
    if not isinstance(getattr(names, component.upper(), None), str):  # of no model at all
        held = sorted(bundle.manifest.components)
        raise OptionError(
            f"there is no component {component!r}{nearest(component, held)} ({bundle.folder} has "
            f"{', '.join(held)})."
        )
    entry = bundle.component(component)
    check_layer(component, entry, layer)
    model = onnx.load(str(bundle.folder / entry.graph), load_external_data=False)
    if not weights:
        _write(weights_as_inputs(model).SerializeToString(deterministic=True), output)
        return [output]
    own = {tensor.name for tensor in entry.inputs}
    inputs_to_initializers(model, [v.name for v in model.graph.input if v.name not in own])
    sources = [bundle.folder / source.path for source in bundle.manifest.sources]
    stored = StoredWeights(entry, sources, layer)
    data = output.with_name(f"{output.name}.data")
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".ltx2rt-") as folder:
        held, _ = weights_as_constants(model, stored, Path(folder))
        for tensor in held.graph.initializer:
            for item in tensor.external_data:
                if item.key == "location" and item.value == DATA_FILE:
                    item.value = data.name
        (Path(folder) / DATA_FILE).replace(data)
    _write(held.SerializeToString(deterministic=True), output)
    return [output, data]


def check_layer(component: str, entry: ComponentEntry, layer: int) -> None:
    """Refuse a layer that a component does not serve.

    Raises:
        OptionError: names those that it serves.
    """
    if layer not in entry.served:
        raise OptionError(
            f"layer {layer} is not one of {component}'s: it has {len(entry.layers)}, and serves "
            f"{', '.join(map(str, entry.served))}."
        )


def _write(data: bytes, output: Path) -> None:
    with Partial(output) as part:
        part.file.write(data)
