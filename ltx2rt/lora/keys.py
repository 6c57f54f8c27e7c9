"""What an adapter file says by itself: key style, updates, scales.

Formats: spec/lora.md §1. Only headers and scalar alphas are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ltx2rt.lora.groups import GroupReader
from ltx2rt.lora.official_names import official_name
from ltx2rt.lora.peft_config import PeftConfig
from ltx2rt.lora.scales import Scales
from ltx2rt.lora.suffixes import MARKER, QUANT_TEXT, SCALE, UNSUPPORTED, Part, part_of
from ltx2rt.lora.tensor_names import is_flat, stem_of
from ltx2rt.lora.updates import Update
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
#: parts that are one number, of any dtype
_NUMBERS = frozenset({"alpha", "on_input"})


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
        plain: tensors that carry no adapter's name, or are of modules that no model of this family
            has: replacements where a model has one of that name, else left out.
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
    groups, plain, unsupported, problems = _sorted(file)
    style = _style(list(groups), file)
    config = PeftConfig(file, peft=style == "peft")
    unsupported += dict.fromkeys(config.refused({p for group in groups.values() for p in group}))
    scales = Scales(file, config, ignore_alpha=ignore_alpha)
    reader = GroupReader(scales, config)
    updates: dict[Target, Update] = {}
    for base, group in groups.items():
        found = dict.fromkeys(problems.get(base, ()))
        for field, update in () if group.keys() == {"alpha"} else reader.updates(base, group):
            if (target := Target(base, field)) in updates:
                found[f"{target} is changed in two ways"] = None
            updates[target] = update
        found |= dict.fromkeys(reader.taken_problems())
        if group.keys() == {"alpha"}:
            found[f"{base} has an alpha of no update"] = None
        problems[base] = list(found)
        if found and not _is_known(base):  # of another model: left out, right or wrong
            updates = {target: u for target, u in updates.items() if target.name != base}
            plain |= {entry.name: entry for entry in group.values()}
            del problems[base]
    alphas = {
        base: scales.number(group["alpha"])
        for base, group in groups.items()
        if "alpha" in group and base in problems
    }
    unknown = sorted({rest for name in plain if (rest := _unknown_part(name, groups))})
    if unknown:
        unsupported.append(f"parts of unknown meaning (.{', .'.join(unknown[:5])})")
    listed = tuple(problem for found in problems.values() for problem in found)
    return LoraKeys(style, updates, plain, tuple(unsupported), listed, alphas)


_Groups = dict[str, dict[str, TensorEntry]]


def _sorted(
    file: SafetensorsFile,
) -> tuple[_Groups, dict[str, TensorEntry], list[str], dict[str, list[str]]]:
    """Module -> part -> tensor, all other tensors, kinds that are refused, module -> problems."""
    groups: _Groups = {}
    plain: dict[str, TensorEntry] = {}
    unsupported: dict[str, None] = {}
    problems: dict[str, list[str]] = {}
    for name, entry, wrong in _decoded(file):
        place = part_of(name)
        if place is None and f"{name.removesuffix('.weight')}.on_input" in file:
            place = Part(name.removesuffix(".weight"), "ia3_weight")
        if place is None:
            kinds = [k for k, p in UNSUPPORTED.items() if (m := p.match(name)) and _is_known(m[1])]
            unsupported |= dict.fromkeys(kinds)
            if not kinds:
                plain[name] = entry
            continue
        group = groups.setdefault(place.base, {})
        found = problems.setdefault(place.base, [])
        found += wrong
        if place.part in group:
            halves = place.part in {"down", "up"}
            found.append(f"{place.base} has two {place.part}{' halves' if halves else 's'}")
        group[place.part] = entry
        if entry.encoding is None and place.part not in _NUMBERS and entry.dtype not in _DTYPES:
            found.append(f"{name} is {entry.dtype}, expected {', '.join(_DTYPES)}")
    return groups, plain, list(unsupported), problems


def _is_known(module: str) -> bool:
    """Whether a model of this family has a module, or a tensor, of this name."""
    return official_name(module) is not None or official_name(module, "bias") is not None


def _unknown_part(name: str, groups: _Groups) -> str | None:
    """What a tensor is called below a module that the file adapts; None for one that stands for
    itself, or is of another model.
    """
    if official_name(*stem_of(name)) is not None:
        return None
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        base = ".".join(parts[:end])
        if base in groups and _is_known(base):
            return ".".join(parts[end:])
    return None


def _decoded(file: SafetensorsFile) -> Iterator[tuple[str, TensorEntry, list[str]]]:
    """The tensors, those with a scale beside them as their values, and what is wrong with those;
    without scales and markers.
    """
    owners: dict[str, TensorEntry] = {}
    used: set[str] = set()
    for name, entry in file.items():
        if (match := SCALE.match(name)) and (owner := _owner(file, match["stem"])) is not None:
            owners[owner] = entry
            used.add(name)
    for name in file:
        owner = _owner(file, name.removesuffix(QUANT_TEXT)) if name.endswith(QUANT_TEXT) else None
        if owner in owners and file[owner].dtype != "int8":
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
            wrong = [f"{name}: {problem}" for problem in found]
            yield name, dataclasses.replace(entry, encoding=encoding), wrong
        elif name not in used and not MARKER.search(name):
            yield name, entry, []


def _owner(file: SafetensorsFile, stem: str) -> str | None:
    """The tensor of codes that a scale is for."""
    found = next((name for name in (f"{stem}.weight", stem) if name in file), None)
    return found if found is not None and file[found].dtype in _SCALED else None


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
