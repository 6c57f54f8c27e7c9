"""What an adapter file says by itself: key style, updates, scales.

Formats: spec/lora.md §1. Only headers and scalar alphas are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ltx2rt.lora.products import Hadamard, Kronecker
from ltx2rt.lora.rotation import Rotation
from ltx2rt.lora.scales import Scales
from ltx2rt.lora.suffixes import MARKER, SCALE, UNSUPPORTED, part_of
from ltx2rt.lora.tensor_names import is_flat
from ltx2rt.lora.updates import (
    Additive,
    Decomposed,
    Difference,
    LowRank,
    Replacement,
    Update,
)
from ltx2rt.weights.codecs.stored import storage_problems
from ltx2rt.weights.safetensors import Encoding, SafetensorsFile, TensorEntry

STYLES: dict[str, str] = {
    "official": "official / ComfyUI",
    "bare": "official names without prefix",
    "kohya": "kohya / musubi-tuner / LyCORIS",
    "peft": "PEFT",
    "diffusers": "diffusers",
}
_DTYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
#: dtype of codes -> how they are stored beside a scale
_SCALED = {"float8_e4m3fn": "fp8_scaled", "float8_e5m2": "fp8_scaled", "int8": "int8"}


class Target(NamedTuple):
    """What an update is for, as the file names it; `field` as in `TensorNames.find`."""

    name: str
    field: str

    def __str__(self) -> str:
        return f"{self.name} (bias)" if self.field == "bias" else self.name


@dataclass(frozen=True, slots=True, eq=False)
class LoraKeys:
    """What an adapter file holds, before it is matched.

    Attributes:
        updates: what it does.
        plain: tensors that carry no adapter's name: replacements where a model has one of that
            name, else left out.
        unsupported: kinds that are refused.
        alphas: module -> alpha, where the file has one.
    """

    style: str
    updates: Mapping[Target, Update]
    plain: Mapping[str, TensorEntry]
    unsupported: tuple[str, ...]
    problems: tuple[str, ...]
    alphas: Mapping[str, float]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({update.kind for update in self.updates.values()}))


def read_lora_keys(file: SafetensorsFile, *, ignore_alpha: bool = False) -> LoraKeys:
    """Sort an adapter's tensors into updates.

    Args:
        ignore_alpha: every scale is 1: the arithmetic of the official loader, which knows files
            without alpha only.

    Raises:
        CheckpointError: an alpha is not a finite number.
    """
    unsupported = tuple(
        kind for kind, pattern in UNSUPPORTED.items() if any(pattern.search(n) for n in file)
    )
    problems: list[str] = []
    groups: dict[str, dict[str, TensorEntry]] = {}
    plain: dict[str, TensorEntry] = {}
    for name, entry in _decoded(file, problems):
        place = part_of(name)
        if place is None:
            if not any(pattern.search(name) for pattern in UNSUPPORTED.values()):
                plain[name] = entry
            continue
        group = groups.setdefault(place.base, {})
        if place.part in group:
            halves = place.part in {"down", "up"}
            problems.append(f"{place.base} has two {place.part}{' halves' if halves else 's'}")
        group[place.part] = entry
        if entry.encoding is None and place.part != "alpha" and entry.dtype not in _DTYPES:
            problems.append(f"{name} is {entry.dtype}, expected {', '.join(_DTYPES)}")
    style = _style(list(groups), file)
    scales = Scales(file, peft=style == "peft", ignore_alpha=ignore_alpha)
    reader = _Reader(scales, problems)
    updates: dict[Target, Update] = {}
    for base, group in groups.items():
        for field, update in reader.updates(base, group):
            if (target := Target(base, field)) in updates:
                problems.append(f"{target} is changed in two ways")
            updates[target] = update
    alphas = {b: scales.number(g["alpha"]) for b, g in groups.items() if "alpha" in g}
    return LoraKeys(style, updates, plain, unsupported, tuple(problems), alphas)


def _decoded(file: SafetensorsFile, problems: list[str]) -> Iterator[tuple[str, TensorEntry]]:
    """The tensors, those with a scale beside them as their values; without scales and markers."""
    owners: dict[str, TensorEntry] = {}
    used: set[str] = set()
    for name, entry in file.items():
        if match := SCALE.match(name):
            stem = match["stem"]
            owner = next((n for n in (f"{stem}.weight", stem) if n in file), None)
            if owner is not None and file[owner].dtype in _SCALED:
                owners[owner] = entry
                used.add(name)
    for name, entry in file.items():
        if name in owners:
            encoding = Encoding(
                format=_SCALED[entry.dtype],
                shape=entry.shape,
                group=1,
                parts={"scale": owners[name]},
            )
            found = storage_problems(entry.shape, entry.dtype, encoding)
            problems += [f"{name}: {problem}" for problem in found]
            yield name, dataclasses.replace(entry, encoding=encoding)
        elif name not in used and not MARKER.search(name):
            yield name, entry


class _Reader:
    """Makes updates of groups of tensors."""

    def __init__(self, scales: Scales, problems: list[str]) -> None:
        self._scales = scales
        self._problems = problems

    def updates(self, base: str, group: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Update]]:
        """Field and update of every tensor that a group changes; problems are noted."""
        alpha = group.get("alpha")
        additive: Additive | None = None
        if group.keys() & {"down", "up", "mid"}:
            additive = self._low_rank(base, group, alpha)
        elif pieces := {k[5:]: _matrix(e) for k, e in group.items() if k.startswith("lokr_")}:
            additive = self._pieces(base, pieces, Kronecker, alpha)
        elif pieces := {k[5:]: _matrix(e) for k, e in group.items() if k.startswith("hada_")}:
            additive = self._pieces(base, pieces, Hadamard, alpha)
        magnitude = group.get("magnitude") or group.get("dora_scale")
        if additive is None and magnitude is not None:
            self._problems.append(f"{base} has magnitudes ({magnitude.name}) of no update")
        elif additive is not None:
            yield "weight", self._decomposed(base, additive, magnitude, group)
        if (entry := group.get("up_bias")) is not None:
            scale = additive.scale if isinstance(additive, LowRank) else 1.0
            yield "bias", Difference(entry, scale, "bias of a LoRA")
        if (entry := group.get("diff")) is not None:
            yield "weight", Difference(_matrix(entry))
        if (entry := group.get("diff_b")) is not None:
            yield "bias", Difference(entry)
        if (entry := group.get("set_weight")) is not None:
            yield "weight", Replacement(entry)
        if (entry := group.get("oft_blocks")) is not None:
            yield from self._rotation(base, entry, group)
        elif "rescale" in group:
            self._problems.append(f"{base} has a rescale without oft_blocks")
        if group.keys() == {"alpha"}:
            self._problems.append(f"{base} has an alpha of no update")

    def _low_rank(
        self, base: str, group: Mapping[str, TensorEntry], alpha: TensorEntry | None
    ) -> LowRank | None:
        if missing := {"down", "up"} - group.keys():
            other = "up" if "down" in missing else "down"
            self._problems.append(f"{base} has only its {other} half")
            return None
        down, up = _matrix(group["down"]), _matrix(group["up"])
        mid = _matrix(group["mid"]) if "mid" in group else None
        chain = [up.shape, *([mid.shape] if mid else []), down.shape]
        if any(len(shape) != 2 for shape in chain):
            problem = "is not one of a linear layer" if mid is not None else "do not chain"
        elif any(a[1] != b[0] for a, b in pairwise(chain)):
            problem = "do not chain"
        elif 0 in (*down.shape, *up.shape):
            problem = "do not chain"
        else:
            scale = self._scales.of(base, down.shape[0], alpha)
            return LowRank(down, up, scale, mid)
        shapes = f"{list(group['down'].shape)} and {list(group['up'].shape)}"
        self._problems.append(f"{base} has shapes {shapes}, which {problem}")
        return None

    def _pieces(
        self,
        base: str,
        pieces: Mapping[str, TensorEntry],
        kind: type[Kronecker] | type[Hadamard],
        alpha: TensorEntry | None,
    ) -> Kronecker | Hadamard | None:
        update = kind(pieces)
        problem = None
        if any(len(e.shape) != 2 or 0 in e.shape for e in pieces.values()):
            problem = "are not those of a linear layer"
        elif not all(_half_is_whole(pieces, which) for which in (1, 2)):
            problem = "are not two complete matrices whose parts chain"
        elif kind is Hadamard and update.half(1) != update.half(2):
            problem = "are two matrices of different shapes"
        if problem is not None:
            shapes = ", ".join(f"{n} {list(e.shape)}" for n, e in sorted(pieces.items()))
            self._problems.append(f"{base} has {update.kind} factors ({shapes}), which {problem}")
            return None
        ranks = [r for r in (update.rank_of(2), update.rank_of(1)) if r is not None]
        scale = self._scales.of(base, ranks[0] if ranks else None, alpha)
        return dataclasses.replace(update, scale=scale)

    def _decomposed(
        self,
        base: str,
        update: Additive,
        magnitude: TensorEntry | None,
        group: Mapping[str, TensorEntry],
    ) -> Update:
        if magnitude is None:
            return update
        comfy = "dora_scale" in group and "diffusion_model." in base
        decomposed = Decomposed(update, magnitude, by_base_norm=comfy)
        if problem := decomposed.problem():
            self._problems.append(f"{base}: {problem}")
        return decomposed

    def _rotation(
        self, base: str, blocks: TensorEntry, group: Mapping[str, TensorEntry]
    ) -> Iterator[tuple[str, Update]]:
        shape = blocks.shape
        if len(shape) not in (3, 4) or 0 in shape or shape[-1] != shape[-2]:
            self._problems.append(f"{base} has oft_blocks {list(shape)}, expected square blocks")
            return
        alpha = group.get("alpha")
        bound = 0.0 if alpha is None else self._scales.number(alpha) * shape[-1] * shape[-3]
        yield "weight", Rotation(blocks, group.get("rescale"), bound)


def _half_is_whole(pieces: Mapping[str, TensorEntry], which: int) -> bool:
    whole, a, b, core = (pieces.get(f"{n}") for n in (
        f"w{which}", f"w{which}_a", f"w{which}_b", f"t{which}"))  # fmt: skip
    if whole is not None:
        return a is None and b is None and core is None
    if a is None or b is None:
        return False
    if core is None:
        return a.shape[1] == b.shape[0]
    return a.shape[0] == core.shape[0] and core.shape[1] == b.shape[0]


def _matrix(entry: TensorEntry) -> TensorEntry:
    """A tensor of a 1x1 convolution as that of the linear layer it stands for."""
    shape = entry.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if shape == entry.shape or entry.encoding is not None:
        return entry
    return dataclasses.replace(entry, shape=shape)


def _style(modules: Sequence[str], file: SafetensorsFile) -> str:
    if any(is_flat(name) for name in modules):
        return "kohya"
    if any("diffusion_model." in name for name in modules):
        return "official"
    if any("base_model.model." in name for name in modules):
        return "peft"
    if any(name.startswith("transformer.") for name in modules):
        return "diffusers"
    return "diffusers" if "lora_adapter_metadata" in file.metadata else "bare"
