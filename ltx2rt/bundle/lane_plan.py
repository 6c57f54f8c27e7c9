"""What of a GPU decoders have for themselves, where that costs the rest nothing: sound is decoded
beside the picture, and both beside the next clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ltx2rt.backends.engine_needs import EngineNeeds
from ltx2rt.bundle.manifest import Manifest
from ltx2rt.bundle.memory_plan import (
    PICTURE_ENGINES,
    SOUND_ENGINES,
    MemoryPlan,
    part_of,
    plan_memory,
    weight_bytes,
)
from ltx2rt.device.arena import Regions
from ltx2rt.errors import UnsupportedError


def plan_lanes(
    manifest: Manifest, needs: Mapping[str, EngineNeeds], room: int, *, resident: bool, card: str
) -> MemoryPlan:
    """As `plan_memory`; then `MemoryPlan.sound` and `MemoryPlan.picture` are what the engines have
    that decode these, unless layers or frames would have less room for it.

    Raises:
        UnsupportedError: see `plan_memory`.
    """
    plan = plan_memory(manifest, needs, room, resident=resident, card=card)
    entries = manifest.components
    names = {n for n in SOUND_ENGINES if n in needs and not _is_constant(manifest, n)}
    if names:
        sound = Regions(
            scratch=max(needs[n].scratch for n in names),
            tensors=max(sum(needs[n].tensors.values()) for n in names),
            engines=sum(sum(weight_bytes(entries[n])) for n in names),
            layers=0,
        )
        rest = _plan_without(names, manifest, needs, room - sound.total, resident=resident)
        if rest is not None and _as_good(rest, plan):
            plan, manifest = replace(rest, sound=sound), _without(names, manifest)
            needs = {n: need for n, need in needs.items() if n not in names}
            room -= sound.total
    return _with_picture(plan, manifest, needs, room, resident=resident)


def _with_picture(
    plan: MemoryPlan,
    manifest: Manifest,
    needs: Mapping[str, EngineNeeds],
    room: int,
    *,
    resident: bool,
) -> MemoryPlan:
    """The plan with memory of their own for the engines that decode pictures, where it can be.

    Args:
        plan: of this manifest and room, without.
    """
    mine = part_of(manifest, lambda name: name in PICTURE_ENGINES)
    if not mine.components:
        return plan
    own = {n: need for n, need in needs.items() if n in PICTURE_ENGINES}
    try:
        picture = plan_memory(mine, own, room, resident=resident, card="")
    except UnsupportedError:
        return plan
    taken = room - picture.regions.total
    rest = _plan_without(set(PICTURE_ENGINES), manifest, needs, taken, resident=resident)
    if rest is None:
        return plan
    rest = replace(
        rest,
        finishes_frames=picture.finishes_frames,
        finishes_floats=picture.finishes_floats,
        sound=plan.sound,
        picture=picture.regions,
    )
    return rest if _as_good(rest, plan) else plan


def _plan_without(
    names: set[str],
    manifest: Manifest,
    needs: Mapping[str, EngineNeeds],
    room: int,
    *,
    resident: bool,
) -> MemoryPlan | None:
    """The plan of all engines but some; None where they have no room."""
    rest = {n: need for n, need in needs.items() if n not in names}
    others = _without(names, manifest)
    try:
        return plan_memory(others, rest, room, resident=resident, card="")
    except UnsupportedError:
        return None


def _without(names: set[str], manifest: Manifest) -> Manifest:
    return part_of(manifest, lambda name: name not in names)


def _is_constant(manifest: Manifest, name: str) -> bool:
    return any(engine.weights == "constant" for engine in manifest.components[name].engines)


def _stay(plan: MemoryPlan) -> int:
    """Bytes of the transformer's layers that stay on the card."""
    return min(plan.weights, max(0, plan.regions.layers - plan.regions.reserve))


def _as_good(plan: MemoryPlan, other: MemoryPlan) -> bool:
    """Whether a plan keeps on the card what another one keeps there."""
    return _stay(plan) >= _stay(other) and all(
        getattr(plan, name) == getattr(other, name)
        for name in ("keep_text", "streams", "finishes_frames", "finishes_floats")
    )
