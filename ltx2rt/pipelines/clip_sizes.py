"""Which clips a bundle can make: `ltx2rt inspect` and `doctor` list them."""

from __future__ import annotations

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.config import GenerationConfig
from ltx2rt.errors import ShapeError
from ltx2rt.pipelines.base import Pipeline, pipeline_class
from ltx2rt.pipelines.built_sizes import built_clips, made_sizes
from ltx2rt.pipelines.rehearsal import rehearse
from ltx2rt.pipelines.request import Request


def clips_of(bundle: Bundle) -> dict[str, list[str]]:
    """`one stage`, `two stages` -> clips that a bundle can make, see `built_sizes.made_sizes`; what
    it lacks the parts for is left out, and so is all where engines take any size.
    """
    found: dict[str, list[str]] = {}
    for kind, name in (("one stage", "one-stage"), ("two stages", "distilled")):
        if not built_clips(bundle) or pipeline_class(name).missing(bundle.has):
            continue
        pipe = pipeline_class(name)(bundle)

        def works(size: tuple[int, int, int], pipe: Pipeline = pipe) -> bool:
            width, height, frames = size
            config = GenerationConfig(
                prompt="-", height=height, width=width, num_frames=frames,
                sigmas=(1.0, 0.0),  # sizes hang on none, and nobody is told which model takes which
            )  # fmt: skip
            try:
                request = pipe.prepare(Request(config=config))
                return not rehearse(pipe._made, pipe.engines, request).problems
            except ShapeError:
                return False

        found[kind] = made_sizes(bundle, works)
    return found
