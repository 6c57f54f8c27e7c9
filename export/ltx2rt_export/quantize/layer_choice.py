"""Which linears of which layers a precision quantises, from headers alone.

One engine serves many layers, so a layer is quantised as a whole or not at all: layers that stay in
16 bits run on a second engine of the same block, `transformer_block_plain`. A quantised checkpoint
decides itself; else the first block and the last five stay, as in released files
(spec/quantization.md §8).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.weights.precision import PRECISIONS, precision_of
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.component import Component
from ltx2rt_export.quantize.carry import is_carried, is_quantized
from ltx2rt_export.quantize.component_graph import component_precision
from ltx2rt_export.quantize.rewrites import (
    BLOCK_LINEARS,
    QUANTIZED_COMPONENT,
    REWRITES,
    TEXT_LINEARS,
    Rewrite,
)

#: blocks that stay in 16 bits at either end, in models that have many
FIRST_BLOCKS, LAST_BLOCKS = 1, 5
MANY_BLOCKS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantPlan:
    """What to quantise.

    Attributes:
        rewrite: of its precision.
        modules: linears that the quantised graph changes, in graph order.
        plain_layers: layers that stay as they are.
        exact: every quantised weight of the file is taken over bit by bit.
    """

    rewrite: Rewrite
    modules: tuple[str, ...]
    plain_layers: tuple[int, ...]
    exact: bool


def has_input_scale(entry: TensorEntry) -> bool:
    """Whether the file calibrated the activations of this linear."""
    return entry.encoding is not None and "input_scale" in entry.encoding.parts


def plan_quantization(
    component: Component, precision: str, plain_layers: Collection[int] | None = None
) -> QuantPlan | None:
    """The plan for a component; None when the precision leaves it alone.

    Args:
        component: the transformer block with its layers, or any other.
        precision: that is asked of it; a name of `PRECISIONS`.
        plain_layers: transformer blocks to keep in 16 bits, instead of the default; the layers of
            the text encoder have no second engine, so that all of them are quantised.

    Raises:
        OptionError: a layer that does not exist.
        UnsupportedError: the precision wants activation scales and the file has none, or nothing
            remains to be quantised.
    """
    name = component.name
    rewrite = REWRITES.get(component_precision(name, precision_of(precision).name))
    if rewrite is None or (pattern := rewrite.pattern(name)) is None:
        return None
    layers = component.layers or (component.weights,)
    if name != QUANTIZED_COMPONENT:
        plain_layers = ()
    if wrong := sorted(set(plain_layers or ()) - set(range(len(layers)))):
        raise OptionError(
            f"layers {wrong} cannot stay in 16 bits: the model has blocks 0 to {len(layers) - 1}."
        )
    linears = [_linears(layer, TEXT_LINEARS.get(name, BLOCK_LINEARS)) for layer in layers]
    stored = [{m: e for m, e in found.items() if is_quantized(e)} for found in linears]
    taken = {m for found in stored for m, e in found.items() if is_carried(rewrite.format, e)}
    scaled = {m for found in linears for m, e in found.items() if has_input_scale(e)}
    modules = tuple(
        m
        for m, entry in linears[0].items()
        if (m in taken if taken else re.fullmatch(pattern, m))
        and (m in scaled or not rewrite.static)
        and rewrite.fits(*entry.shape)
    )
    if plain_layers is None:
        plain_layers = _default_plain(rewrite, stored, modules)
    plain = {
        i
        for i, found in enumerate(linears)
        if i in plain_layers
        or (rewrite.static and not all(has_input_scale(found[m]) for m in modules))
    }
    if not modules or len(plain) == len(layers):
        raise UnsupportedError(_nothing_left(rewrite, linears))
    used = [e for i, found in enumerate(stored) if i not in plain for e in found.values()]
    return QuantPlan(
        rewrite=rewrite,
        modules=modules,
        plain_layers=tuple(sorted(plain)),
        exact=bool(used) and all(is_carried(rewrite.format, e) for e in used),
    )


def _linears(layer: Mapping[str, TensorEntry], pattern: str) -> dict[str, TensorEntry]:
    """The linears of a component that any precision may quantise."""
    modules = {n.removesuffix(".weight"): e for n, e in layer.items() if n.endswith(".weight")}
    return {m: e for m, e in modules.items() if re.fullmatch(pattern, m)}


def _default_plain(
    rewrite: Rewrite, stored: list[dict[str, TensorEntry]], modules: Collection[str]
) -> set[int]:
    if any(stored):
        return {i for i, found in enumerate(stored) if not found.keys() & set(modules)}
    count = len(stored)
    if not rewrite.keep_ends or count < MANY_BLOCKS:
        return set()
    return {*range(FIRST_BLOCKS), *range(count - LAST_BLOCKS, count)}


def _nothing_left(rewrite: Rewrite, linears: list[dict[str, TensorEntry]]) -> str:
    name = rewrite.precision.name
    if rewrite.static and not any(has_input_scale(e) for found in linears for e in found.values()):
        dynamic = [n for n, r in REWRITES.items() if r.format is rewrite.format and not r.static]
        return (
            f"precision={name!r} needs a checkpoint with activation scales (input_scale), this one "
            f"has none; use {dynamic[0]!r}, which computes them."
        )
    names = [p.name for p in PRECISIONS.values() if p.format is None]
    return (
        f"precision={name!r} would quantise nothing in this model: every layer stays in 16 "
        f"bits or its sizes do not fit; use {', '.join(names)}."
    )
