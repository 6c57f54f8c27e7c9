"""What does not fit a GPU is refused before anything is loaded or built."""

from __future__ import annotations

import dataclasses

import pytest

from ltx2rt.bundle.manifest import ComponentEntry, Manifest, WeightRef
from ltx2rt.bundle.memory import (
    refuse_too_large,
    stage_weight_bytes,
)
from ltx2rt.device.cuda import Gpu
from ltx2rt.errors import UnsupportedError
from tests.unit.manifests import ENTRY, MANIFEST

STAGES = {"encode prompt": 3 << 30, "denoise": 40 << 30}


def test_the_largest_stage_decides() -> None:
    refuse_too_large(STAGES, "weights", Gpu("a card", "sm90", 40 << 30))
    refuse_too_large({}, "weights", Gpu("a card", "sm90", 0))
    with pytest.raises(UnsupportedError, match=r"'denoise' takes 40\.0 GiB of weights.*24\.0 GiB"):
        refuse_too_large(STAGES, "weights", Gpu("a card", "sm89", 24 << 30))


def component(*layers: int) -> ComponentEntry:
    """A float32 component whose layers hold this many values."""
    refs = [
        WeightRef(source=0, dtype="float32", shape=(n,), offset=0, length=4 * n) for n in layers
    ]
    return dataclasses.replace(ENTRY, layers=tuple({"w": ref} for ref in refs))


def bundle_of(**components: ComponentEntry) -> Manifest:
    return dataclasses.replace(MANIFEST, components=components)


def test_a_small_gpu_holds_one_layer_at_a_time() -> None:
    manifest = bundle_of(
        text_block=component(70, 90),
        transformer_head=component(10),
        transformer_block=component(300, 500, 400),
        spatial_upsampler=component(20),
        video_decoder=component(30),
    )
    most = {"encode prompt": 4 * 90, "denoise": 4 * (10 + 1200 + 20), "decode": 4 * 30}
    assert stage_weight_bytes(manifest) == most
    least = {**most, "denoise": 4 * (10 + 500 + 20)}
    assert stage_weight_bytes(manifest, least=True) == least
