"""Fuse LoRAs into a model: changed tensors go to one overlay file, everything else stays where it
is.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ltx2rt.engine import Array
from ltx2rt.lora.adapter import (
    Updates,
    collect_updates,
    fuse_entry,
    fused_dtype,
    lora_targets,
    parse_lora,
)
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.generation import misfit
from ltx2rt.lora.updates import Update
from ltx2rt.lora.values import check_finite
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component

logger = logging.getLogger(__name__)

OVERLAY = "loras.safetensors"

#: the model's parts that LoRAs may change
ROLES = ("transformer", "connectors", "text_projection")


def match_loras(files: ModelFiles, loras: Sequence[Lora]) -> Updates:
    """What LoRAs change, by official tensor name; what they bring for other models is counted in
    one warning. Their numbers are looked through.

    Raises:
        CheckpointError: a LoRA file is broken or fits no tensor of this model.
        UnsupportedError: an adapter kind that cannot be fused.
    """
    targets = lora_targets(*(files.tensors(role) for role in ROLES))
    adapters = [(parse_lora(open_lora(x.path), targets), x.strength) for x in loras]
    for adapter, _ in adapters:
        check_finite(adapter.file, adapter.updates.values())
        adapter.warn_of_skipped()
        adapter.warn_of_no_effect()
        if problem := misfit(adapter.file, adapter.keys, files.version.generation):
            logger.warning("%s", problem)
    return collect_updates(adapters)


def fuse_loras(
    components: Sequence[Component],
    files: ModelFiles,
    loras: Sequence[Lora],
    folder: Path,
    *,
    resume: bool = False,
) -> list[Component]:
    """Components with LoRAs fused; the changed tensors are written to `folder/loras.safetensors`,
    one at a time, unless it is there to `resume` from.

    Raises:
        CheckpointError, UnsupportedError: see `match_loras`.
    """
    updates = match_loras(files, loras)
    if not updates:
        return list(components)
    tensors = {
        name.removeprefix("model.diffusion_model."): entry
        for role in ROLES
        for name, entry in files.tensors(role).items()
    }
    changed = {name: tensors[name] for name in updates}
    folder.mkdir(parents=True, exist_ok=True)
    maps = MappedFiles()
    if not (resume and (folder / OVERLAY).exists()):
        write_safetensors(
            folder / OVERLAY,
            {
                entry.name: (fused_dtype(entry), entry.shape, _fused(maps, entry, updates[name]))
                for name, entry in changed.items()
            },
            {"loras": "; ".join(f"{Path(x.path).name}:{x.strength:g}" for x in loras)},
        )
    overlay = SafetensorsFile(folder / OVERLAY)
    moved = {(e.path, e.offset): overlay[e.name] for e in changed.values()}
    return [
        dataclasses.replace(
            component,
            weights=_move(component.weights, moved),
            layers=tuple(_move(layer, moved) for layer in component.layers),
        )
        for component in components
    ]


def _fused(
    maps: MappedFiles, entry: TensorEntry, updates: Sequence[tuple[Update, float]]
) -> Iterator[Array]:
    yield fuse_entry(maps, entry, updates, threads=os.cpu_count() or 1)


def _move(
    weights: Mapping[str, TensorEntry], moved: Mapping[tuple[Path, int], TensorEntry]
) -> dict[str, TensorEntry]:
    return {name: moved.get((e.path, e.offset), e) for name, e in weights.items()}
