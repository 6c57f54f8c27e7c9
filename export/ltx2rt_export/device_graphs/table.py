"""Which of these graphs a bundle of engines gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ltx2rt.names import VIDEO_DECODER
from ltx2rt_export.component import Component
from ltx2rt_export.device_graphs.frames import blend_graph, i420_graph, rgb_graph
from ltx2rt_export.graph import ExportedGraph


def device_graphs(components: Sequence[Component]) -> Iterator[ExportedGraph]:
    """Those that go with the components of a bundle, whose boundary has the dtypes of engines."""
    names = {component.name for component in components}
    if VIDEO_DECODER in names:
        yield from (blend_graph(), rgb_graph(), i420_graph())
