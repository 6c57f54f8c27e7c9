"""Adapters: match them to a model and merge them into its weights (spec/lora.md).

Only headers and scalar alphas are read until values are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, UnsupportedError, shortened
from ltx2rt.lora.fuse import fuse
from ltx2rt.lora.keys import LoraKeys, Target, read_lora_keys
from ltx2rt.lora.multiplied import Scaling
from ltx2rt.lora.tensor_names import TensorNames, stem_of
from ltx2rt.lora.updates import Fitting, Replacement, Update
from ltx2rt.names import TEXT_TAIL, TRANSFORMER_BLOCK
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry

logger = logging.getLogger(__name__)

#: official tensor name -> its updates in list order, with strengths
Updates = dict[str, list[tuple[Update, float]]]
_PREFIX = "model.diffusion_model."
#: stands before the official names of connectors and projections in the component `text_tail`
_TEXT_TAIL_PREFIX = "projection."


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter matched to a model.

    Attributes:
        updates: official tensor name (no prefix) -> what happens to it.
        skipped: modules and tensors of the file that the model does not have.
    """

    file: SafetensorsFile
    keys: LoraKeys
    updates: Mapping[str, Update]
    skipped: tuple[str, ...]

    def warn_of_skipped(self) -> None:
        """One line about what is left out, if anything is."""
        if self.skipped:
            first = ", ".join(self.skipped[:3]) + (", ..." if len(self.skipped) > 3 else "")
            logger.warning(
                "LoRA %s: %d of %d modules and tensors are not part of this model and are left "
                "out (%s)",
                self.file.path,
                len(self.skipped),
                len(self.skipped) + len(self.updates),
                first,
            )

    def warn_of_no_effect(self) -> None:
        """One line about modules whose alpha is 0."""
        still = [base for base, alpha in self.keys.alphas.items() if alpha == 0]
        if still:
            logger.warning(
                "LoRA %s: alpha is 0 in %d modules, which therefore change nothing (%s)",
                self.file.path,
                len(still),
                ", ".join(still[:3]),
            )


def parse_lora(
    file: SafetensorsFile, targets: Mapping[str, tuple[int, ...]], *, ignore_alpha: bool = False
) -> Adapter:
    """Match an adapter to a model.

    Args:
        targets: official tensor name -> shape; see `lora_targets`.
        ignore_alpha: see `read_lora_keys`.

    Raises:
        UnsupportedError: it holds kinds that are not merged; all are named.
        CheckpointError: it is broken, fits no tensor of this model, or shapes differ: all listed.
    """
    keys = read_lora_keys(file, ignore_alpha=ignore_alpha)
    refuse_unsupported(file, keys)
    names = TensorNames(targets)
    updates: dict[str, Update] = {}
    skipped: dict[str, None] = {}
    problems = list(keys.problems)
    for target, update in all_updates(keys).items():
        name = names.find(*target)
        if name is None and _needs_no_target(update, target, names):
            continue
        if name is None:
            skipped[str(target)] = None
        elif problem := _shape_problem(update, tuple(targets[name])):
            problems.append(f"{stem_of(name)[0]} {problem}")
        elif name in updates:
            problems.append(f"{name} occurs twice")
        else:
            updates[name] = update
    if not problems and not updates:
        problems.append(_nothing_matches(file, names, skipped))
    if problems:
        raise CheckpointError(f"LoRA {file.path} does not fit this model", shortened(problems))
    return Adapter(file, keys, updates, tuple(skipped))


def refuse_unsupported(file: SafetensorsFile, keys: LoraKeys) -> None:
    """Refuse kinds that are not merged.

    Raises:
        UnsupportedError: all of them are named.
    """
    if keys.unsupported:
        raise UnsupportedError(
            f"{file.path} uses {', '.join(keys.unsupported)}, which is not merged: convert it with "
            "its trainer, or bake it into a checkpoint first (docs/files.md lists what is)."
        )


def all_updates(keys: LoraKeys) -> dict[Target, Update]:
    """What a file does, with replacements for its tensors of no adapter kind; those alone (a whole
    model, say) are no adapter.
    """
    if not keys.updates:
        return {}
    whole = {Target(*stem_of(n)): Replacement(entry) for n, entry in keys.plain.items()}
    return {**whole, **keys.updates}


def _needs_no_target(update: Update, target: Target, names: TensorNames) -> bool:
    """Whether it is a scaling of a bias, of a layer that has none."""
    is_bias = isinstance(update, Scaling) and target.field == "bias"
    return is_bias and names.find(target.name, "weight") is not None


def _nothing_matches(file: SafetensorsFile, names: TensorNames, skipped: Iterable[str]) -> str:
    first = ", ".join(sorted(skipped)[:3]) or ", ".join(sorted(file)[:3]) or "nothing"
    if any(names.find(*stem_of(name)) for name in file):
        return (
            f"it holds whole tensors of a model ({first}), no adapter: a model is given to "
            "`ltx2rt build`, as --checkpoint"
        )
    return f"no module of the model matches (the file has {first})"


def _shape_problem(update: Update, target: tuple[int, ...]) -> str | None:
    if isinstance(update, Fitting):
        problem = update.problem(target)
        return None if problem is None else f"is {list(target)}: {problem}"
    if update.shape == target:
        return None
    found = list(update.shape or ())
    return f"is {list(target)}, the {update.kind} is for {found}"


def lora_targets(*parts: Mapping[str, TensorEntry]) -> dict[str, tuple[int, ...]]:
    """What an adapter may change: every tensor of transformer, connectors, projections."""
    return {name.removeprefix(_PREFIX): e.shape for part in parts for name, e in part.items()}


def official_tensor(component: str, layer: int, weight: str) -> str | None:
    """The official name of a component's weight: block weights are named without their layer, those
    of connectors and projections below a prefix. None for what is no target.
    """
    if component == TEXT_TAIL:
        prefix = _TEXT_TAIL_PREFIX
        return weight.removeprefix(prefix) if weight.startswith(prefix) else None
    is_block = component.startswith(TRANSFORMER_BLOCK)
    return f"transformer_blocks.{layer}.{weight}" if is_block else weight


def factor_names(module: str) -> tuple[str, str]:
    """Inputs A `[in, r]` and B `[r, out]` of graphs that take LoRAs unmerged: the names of the
    official format.
    """
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def collect_updates(adapters: Iterable[tuple[Adapter, float]]) -> Updates:
    """All updates of each tensor; adapters of strength 0 change nothing and are left out."""
    updates: Updates = {}
    for adapter, strength in adapters:
        for name, update in adapter.updates.items() if strength else ():
            updates.setdefault(name, []).append((update, strength))
    return updates


def fused_dtype(weight: TensorEntry) -> str:
    """What a fused weight is rounded to: its own dtype, bfloat16 for quantised ones.

    The runtime does not quantise fused weights again (spec/lora.md §5 does): bfloat16 keeps
    more of them, and the delta is a bfloat16 number anyway.
    """
    return "float32" if weight.dtype in {"float64", "float32", "float16"} else "bfloat16"


def fuse_entry(
    files: MappedFiles,
    weight: TensorEntry,
    updates: Sequence[tuple[Update, float]],
    *,
    dtype: str | None = None,
    delta_dtype: str = "bfloat16",
    threads: int = 1,
) -> Array:
    """Merge updates, each with its strength, into a checkpoint tensor; float32 values.

    `dtype` defaults to `fused_dtype`; see `fuse`.
    """
    return fuse(
        files.load(weight, "float32"),
        updates,
        lambda entry: files.load(entry, "float32"),
        dtype=dtype or fused_dtype(weight),
        delta_dtype=delta_dtype,
        threads=threads,
    )
