"""What the tensors of one module of an adapter's file are together: its updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import pairwise

from ltx2rt.lora.input_rotation import InputButterfly, InputRotation
from ltx2rt.lora.multiplied import GLORA, Glora, Scaling, glora_chains
from ltx2rt.lora.peft_config import PeftConfig
from ltx2rt.lora.products import Hadamard, Kronecker
from ltx2rt.lora.rotation import Rotation
from ltx2rt.lora.scales import Scales
from ltx2rt.lora.updates import (
    Additive,
    Decomposed,
    Difference,
    LowRank,
    Replacement,
    Update,
)
from ltx2rt.weights.safetensors import TensorEntry


class GroupReader:
    """Makes updates of groups of tensors."""

    def __init__(self, scales: Scales, config: PeftConfig) -> None:
        self._scales = scales
        self._config = config
        self._problems: list[str] = []

    def updates(self, base: str, group: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Update]]:
        """Field and update of every tensor that a group changes.

        Args:
            base: the module, as the file names it.
            group: part -> tensor (`suffixes.part_of`).
        """
        alpha = group.get("alpha")
        additive: Additive | None = None
        if group.keys() & {"down", "up", "mid", "gains"}:
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
        yield from self._of_the_base(base, group, alpha)
        if (entry := group.get("oft_blocks")) is not None:
            yield from self._rotation(base, entry, group)
        elif "rescale" in group:
            self._problems.append(f"{base} has a rescale without oft_blocks")

    def taken_problems(self) -> list[str]:
        """What is wrong with the groups since the last call."""
        problems, self._problems = self._problems, []
        return problems

    def _of_the_base(
        self, base: str, group: Mapping[str, TensorEntry], alpha: TensorEntry | None
    ) -> Iterator[tuple[str, Update]]:
        """Kinds that multiply the base."""
        if pieces := {name: _matrix(group[name]) for name in GLORA if name in group}:
            shapes = [pieces[name].shape for name in GLORA if name in pieces]
            if len(pieces) < len(GLORA) or not glora_chains(*shapes):
                listed = ", ".join(f"{name} {list(e.shape)}" for name, e in pieces.items())
                self._problems.append(f"{base} has GLoRA factors ({listed}), which do not chain")
            else:
                scale = self._scales.of(base, pieces["a2"].shape[0], alpha)
                yield "weight", Glora(pieces, scale)
        if (entry := group.get("ia3_l")) is not None:
            inputs = len(entry.shape) == 2 and entry.shape[0] == 1
            yield "weight", Scaling(entry, inputs=inputs)
            if not inputs:
                yield "bias", Scaling(entry)
        if (switch := group.get("on_input")) is not None:
            if (entry := group.get("ia3_weight")) is None:
                self._problems.append(f"{base} has an on_input without a weight")
            else:
                yield "weight", Scaling(entry, inputs=self._scales.number(switch) != 0, offset=1)
        if (entry := group.get("oft_R")) is not None:
            options = self._config.of(base)
            series = options.get("use_cayley_neumann", True)
            yield (
                "weight",
                InputRotation(
                    entry,
                    terms=options.get("num_cayley_neumann_terms", 5) if series else None,
                    bound=options.get("eps", 6e-5) if options.get("coft") else None,
                    shared=bool(options.get("block_share")),
                ),
            )
        if (entry := group.get("boft_R")) is not None:
            yield "weight", InputButterfly(entry, group.get("boft_s"))
        elif "boft_s" in group:
            self._problems.append(f"{base} has a boft_s without boft_R")

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
            problem = "are empty"
        else:
            gains = group.get("gains")
            if gains is not None and gains.num_elements != down.shape[0]:
                self._problems.append(
                    f"{base} has {list(gains.shape)} gains (lora_E) of rank {down.shape[0]}"
                )
            scale = self._scales.of(base, down.shape[0], alpha, adaptive=gains is not None)
            return LowRank(down, up, scale, mid, gains)
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
        decomposed = Decomposed(update, _matrix(magnitude), by_base_norm=comfy)
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
