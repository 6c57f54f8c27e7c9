"""Fuse LoRAs into a model: changed tensors go to one overlay file, everything else stays where it
is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ltx2rt.engine import Array
from ltx2rt.lora.adapter import collect_updates, fuse_entry, fused_dtype, lora_targets, parse_lora
from ltx2rt.lora.files import Lora, find_lora
from ltx2rt.lora.keys import LoraPair
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.kinds import open_weights

OVERLAY = "loras.safetensors"

#: the model's parts that LoRAs may change
ROLES = ("transformer", "connectors", "text_projection")

#: module -> what is added to its weight, with strengths
Updates = dict[str, list[tuple[LoraPair, float]]]


def match_loras(files: ModelFiles, loras: Sequence[Lora]) -> Updates:
    """What LoRAs change, by module; reads headers only.

    Raises:
        CheckpointError: a LoRA file is broken or fits no module of this model.
        UnsupportedError: an adapter kind that cannot be fused.
    """
    targets = lora_targets(*(files.tensors(role) for role in ROLES))
    opened = [open_weights(find_lora(lora.path)) for lora in loras]
    return collect_updates(
        [
            (parse_lora(file, targets), lora.strength)
            for file, lora in zip(opened, loras, strict=True)
        ]
    )


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
    weights = {
        name.removesuffix(".weight").removeprefix("model.diffusion_model."): entry
        for role in ROLES
        for name, entry in files.tensors(role).items()
        if name.endswith(".weight")
    }
    changed = {module: weights[module] for module in updates}
    folder.mkdir(parents=True, exist_ok=True)
    maps = MappedFiles()
    if not (resume and (folder / OVERLAY).exists()):
        write_safetensors(
            folder / OVERLAY,
            {
                entry.name: (fused_dtype(entry), entry.shape, _fused(maps, entry, updates[module]))
                for module, entry in changed.items()
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
    maps: MappedFiles,
    entry: TensorEntry,
    updates: Sequence[tuple[LoraPair, float]],
) -> Iterator[Array]:
    yield fuse_entry(maps, entry, updates)


def _move(
    weights: Mapping[str, TensorEntry], moved: Mapping[tuple[Path, int], TensorEntry]
) -> dict[str, TensorEntry]:
    return {name: moved.get((e.path, e.offset), e) for name, e in weights.items()}
