"""The sizes that the engines of a bundle are given for one request, for a GPU that has no room for
the largest ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ltx2rt.bundle.buckets import Bucket, choose_bucket
from ltx2rt.bundle.manifest import ComponentEntry, Manifest
from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DEVICE_FRAMES,
    DIFFUSION_DECODER,
    SPATIAL_UPSAMPLER,
    TEMPORAL_UPSAMPLER,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VOCODER,
)

#: component or device graph -> sizes by symbol, for each way in which it is run
RequestSizes = Mapping[str, Sequence[Mapping[str, int]]]

#: what a request that says nothing about them does not run
OPTIONAL = (
    *(VIDEO_ENCODER, AUDIO_ENCODER, SPATIAL_UPSAMPLER, TEMPORAL_UPSAMPLER),
    *(VIDEO_DECODER, *DIFFUSION_DECODER, *DEVICE_FRAMES, AUDIO_DECODER, VOCODER),
)


def narrowed(manifest: Manifest, sizes: RequestSizes) -> Manifest:
    """The manifest of a bundle that was built for these sizes alone, of what a request runs."""

    def of(entries: Mapping[str, ComponentEntry]) -> dict[str, ComponentEntry]:
        return {
            name: _narrowed(name, entry, sizes.get(name, ()))
            for name, entry in entries.items()
            if name in sizes or name not in OPTIONAL
        }

    return replace(
        manifest, components=of(manifest.components), device_graphs=of(manifest.device_graphs)
    )


def covers(planned: RequestSizes, asked: RequestSizes) -> bool:
    """Whether what is planned for one request is enough for another."""
    return all(
        any(all(n <= mine.get(s, 0) for s, n in given.items()) for mine in planned.get(name, ()))
        for name, each in asked.items()
        for given in each
    )


def _narrowed(
    name: str, entry: ComponentEntry, sizes: Sequence[Mapping[str, int]]
) -> ComponentEntry:
    if not sizes:
        return entry
    engines = tuple(
        replace(engine, buckets=tuple(_bucket(name, engine.buckets, given) for given in sizes))
        for engine in entry.engines
    )
    return replace(entry, engines=engines)


def _bucket(name: str, buckets: Sequence[Bucket], given: Mapping[str, int]) -> Bucket:
    built = buckets[choose_bucket(name, buckets, given)]
    only = {s: (n, n, n) for s, n in given.items() if s in built.sizes}
    return replace(built, sizes=built.sizes | only)
