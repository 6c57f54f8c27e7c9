"""Which of these graphs a bundle of engines gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ltx2rt.names import (
    DIFFUSION_FEATURES,
    DIFFUSION_PIXELS,
    TRANSFORMER_HEAD,
    TRANSFORMER_TAIL,
    VIDEO_DECODER,
)
from ltx2rt_export.component import Component
from ltx2rt_export.device_graphs.frames import (
    blend_graph,
    float_graph,
    i420_graph,
    rgb_graph,
    unpatch_graph,
    yuv422p10_graph,
)
from ltx2rt_export.device_graphs.steps import euler_graph, noisy_graph
from ltx2rt_export.graph import ExportedGraph


def device_graphs(components: Sequence[Component]) -> Iterator[ExportedGraph]:
    """Those that go with the components of a bundle, whose boundary has the dtypes of engines."""
    found = {component.name: component for component in components}
    if VIDEO_DECODER in found or DIFFUSION_PIXELS in found:
        yield from (blend_graph(), rgb_graph(), i420_graph(), float_graph(), yuv422p10_graph())
    if DIFFUSION_PIXELS in found and DIFFUSION_FEATURES in found:
        yield unpatch_graph(int(found[DIFFUSION_FEATURES].options["patch_size"]))
    if TRANSFORMER_HEAD in found and TRANSFORMER_TAIL in found:
        taken = {s.dtype for s in found[TRANSFORMER_HEAD].inputs if s.name.endswith("_latent")}
        given = {s.dtype for s in found[TRANSFORMER_TAIL].outputs if s.name.endswith("_velocity")}
        if len(taken) == len(given) == 1:
            dtypes = taken.pop(), given.pop()
            yield from (euler_graph(*dtypes), noisy_graph(*dtypes))
