"""How the layers of a transformer fit the memory of a machine that runs it on its CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ltx2rt.bundle.manifest import Manifest
from ltx2rt.bundle.memory import held_bytes, layer_bytes
from ltx2rt.errors import UnsupportedError
from ltx2rt.machine import machine_bytes
from ltx2rt.names import (
    LANGUAGE_HEAD,
    STAGES,
    TEXT_BLOCK,
    TEXT_BLOCKS,
    TEXT_HEAD,
    TRANSFORMER_BLOCKS,
)
from ltx2rt.weights.codecs.engine_formats import INT8
from ltx2rt.weights.precision import PRECISIONS

#: what messages name where weights take too much
_SMALLER = next(row.name for row in PRECISIONS.values() if row.format is INT8)

#: of the memory, what is left to activations, the system and other programs
_SPARE_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """What stays in memory.

    Attributes:
        memory_bytes: of the machine.
        layers: bytes of each layer of the transformer, as its engine takes it.
        kept: so many of the first ones stay; the others are read from the files at every use.
        keep_text: the layers of the text encoder stay between clips.
        kept_writing: so many of the text encoder's layers stay while it writes.
        precision: of the bundle.
    """

    memory_bytes: int
    layers: tuple[int, ...]
    kept: int
    keep_text: bool
    kept_writing: int
    precision: str

    @property
    def streams(self) -> bool:
        """Whether layers are read from the files at every use."""
        return self.kept < len(self.layers)

    def text(self) -> str:
        """The plan for people, one line."""
        held = (
            f"the {len(self.layers)} layers of the transformer take {_gib(sum(self.layers))} in "
            f"{self.precision}, and the memory is {_gib(self.memory_bytes)}: "
        )
        if not self.streams:
            return f"{held}all stay"
        return (
            f"{held}{self.kept} stay, the others are read from the files at every use; a bundle of "
            f"a smaller precision (--precision {_SMALLER}) keeps more"
        )


def plan_host(manifest: Manifest, memory_bytes: int, *, resident: bool) -> HostPlan:
    """Which layers of the transformer stay in memory.

    Args:
        memory_bytes: of the machine.
        resident: engines stay loaded between clips; what is streamed makes room for them.

    Raises:
        UnsupportedError: not even one layer finds room.
    """
    sizes = {name: layer_bytes(entry) for name, entry in manifest.components.items()}
    blocks = [sizes[name] for name in TRANSFORMER_BLOCKS if name in sizes]
    layers = tuple(map(sum, zip(*blocks, strict=True)))
    beside = (name for name in (sizes if resident else STAGES["denoise"]) if name in sizes)
    others = {
        n: held_bytes(n, sizes[n], least=False) for n in beside if n not in TRANSFORMER_BLOCKS
    }
    rest = sum(others.values())
    kept = kept_layers(layers, rest, memory_bytes)
    if kept is None:
        needed = _gib(rest + max(layers, default=0))
        raise UnsupportedError(
            f"one layer of the transformer and what is held beside it take {needed} in "
            f"{manifest.precision}, and this machine has {_gib(memory_bytes)} of memory; use "
            f"--residency stage, or build in a smaller precision, such as --precision {_SMALLER}."
        )
    room = memory_bytes - memory_bytes // _SPARE_SHARE - rest
    text = sum(sum(sizes[n]) - max(sizes[n], default=0) for n in TEXT_BLOCKS if n in sizes)
    ends = sum(sum(sizes[n]) for n in (TEXT_HEAD, LANGUAGE_HEAD) if n in sizes)
    writing = memory_bytes - memory_bytes // _SPARE_SHARE - ends
    return HostPlan(
        memory_bytes=memory_bytes,
        layers=layers,
        kept=kept,
        keep_text=resident and sum(layers) + text <= room,
        kept_writing=_kept(sizes.get(TEXT_BLOCK, []), writing),
        precision=manifest.precision,
    )


def kept_layers(layers: Sequence[int], beside: int, memory_bytes: int) -> int | None:
    """How many of the first layers of the transformer stay in a machine's memory.

    Args:
        layers: bytes of each.
        beside: bytes of what is held with them.

    Returns:
        None: not even one layer at a time finds room.
    """
    if beside + max(layers, default=0) > memory_bytes:
        return None
    return _kept(layers, memory_bytes - memory_bytes // _SPARE_SHARE - beside)


def _kept(layers: Sequence[int], room: int) -> int:
    """How many of the first layers stay: beside them, the largest of the others is loaded."""
    if not layers or sum(layers) <= room:
        return len(layers)
    kept, largest = 0, max(layers)
    while sum(layers[: kept + 1]) + largest <= room:
        kept += 1
    return kept


def warn_of_memory(manifest: Manifest) -> None:
    """Say that this machine has too little memory for a bundle that runs on a CPU: another machine
    may have more.
    """
    if not manifest.runs_on_cpu:
        return
    try:
        plan = plan_host(manifest, machine_bytes(), resident=False)
    except UnsupportedError as error:
        warnings.warn(f"this machine cannot run the bundle: {error}", stacklevel=2)
    else:
        if plan.streams:
            warnings.warn(f"{plan.text()}.", stacklevel=2)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
