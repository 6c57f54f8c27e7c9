"""The plan of a card that has no room for all stages at once: each has it alone, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ltx2rt.backends.engine_needs import EngineNeeds
from ltx2rt.bundle.lane_plan import plan_lanes
from ltx2rt.bundle.manifest import Manifest
from ltx2rt.bundle.memory_plan import MemoryPlan, part_of, plan_memory
from ltx2rt.errors import UnsupportedError
from ltx2rt.names import DECODE, DENOISE, ENCODE_PROMPT, stage_of

_DOING = {
    ENCODE_PROMPT: "while it encodes prompts",
    DENOISE: "while it denoises",
    DECODE: "while it decodes",
}


def plan_card_memory(
    manifest: Manifest, needs: Mapping[str, EngineNeeds], room: int, *, resident: bool, card: str
) -> MemoryPlan:
    """As `plan_lanes`; where that does not fit, and engines need not stay loaded, for one stage at
    a time: `MemoryPlan.stages` says how the card is divided in each.

    Raises:
        UnsupportedError: a stage does not fit alone either.
    """
    try:
        return plan_lanes(manifest, needs, room, resident=resident, card=card)
    except UnsupportedError:
        if resident:
            raise

    def plan_of(stage: str) -> MemoryPlan:
        return plan_memory(
            part_of(manifest, lambda name: stage_of(name) == stage),
            {name: need for name, need in needs.items() if stage_of(name) == stage},
            room,
            resident=False,
            card=f"{card} {_DOING[stage]}",
        )

    plans = {stage: plan_of(stage) for stage in _DOING}
    total = max(plan.regions.total for plan in plans.values())
    stages = {
        stage: replace(plan.regions, layers=plan.regions.layers + total - plan.regions.total)
        for stage, plan in plans.items()
    }
    return replace(
        plans[DENOISE],
        regions=stages[DENOISE],
        stages=stages,
        places={
            names: plans[stage_of(names.head)].places[names] for names in plans[DENOISE].places
        },
        totals={
            names: plans[stage_of(names.head)].totals[names] for names in plans[DENOISE].totals
        },
        finishes_frames=plans[DECODE].finishes_frames,
        finishes_floats=plans[DECODE].finishes_floats,
    )
