"""Which linears of which layers a scheme quantises, from headers alone.

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
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.component import Component
from ltx2rt_export.quantize.schemes import (
    BLOCK_LINEARS,
    QUANTIZED_COMPONENT,
    SCHEMES,
    Scheme,
    scheme_of,
)

#: blocks that stay in 16 bits at either end, in models that have many
FIRST_BLOCKS, LAST_BLOCKS = 1, 5
MANY_BLOCKS = 24

#: engine format -> the stored formats whose codes and scales it can take over as they are
SAME_CODES = {
    "fp8": ("fp8", "fp8_scaled"),
    "nvfp4": ("nvfp4",),
    "int8": ("int8",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantPlan:
    """What to quantise.

    Attributes:
        scheme: its scheme.
        modules: linears that the quantised graph changes, in graph order.
        plain_layers: layers that stay as they are.
        exact: every quantised weight of the file is taken over bit by bit.
    """

    scheme: Scheme
    modules: tuple[str, ...]
    plain_layers: tuple[int, ...]
    exact: bool


def stored_format(entry: TensorEntry) -> str | None:
    """How a file holds a weight: a format of `codecs.stored`, `fp8` for E4M3 codes without a scale,
    None for plain floats.
    """
    if entry.encoding is not None:
        return entry.encoding.format
    return "fp8" if entry.dtype == "float8_e4m3fn" else None


def has_input_scale(entry: TensorEntry) -> bool:
    """Whether the file calibrated the activations of this linear."""
    return entry.encoding is not None and "input_scale" in entry.encoding.parts


def plan_quantization(
    component: Component, scheme: str, plain_layers: Collection[int] | None = None
) -> QuantPlan | None:
    """The plan for a component; None when the scheme leaves it alone.

    Args:
        component: the transformer block with its layers, or any other.
        scheme: a name of `SCHEMES`.
        plain_layers: layers to keep in 16 bits, instead of the default.

    Raises:
        OptionError: a layer that does not exist.
        UnsupportedError: the scheme wants activation scales and the file has none, or nothing
            remains to be quantised.
    """
    chosen = scheme_of(scheme)
    if component.name != QUANTIZED_COMPONENT or chosen.format is None:
        return None
    layers = component.layers
    if wrong := sorted(set(plain_layers or ()) - set(range(len(layers)))):
        raise OptionError(
            f"layers {wrong} cannot stay in 16 bits: the model has blocks 0 to {len(layers) - 1}."
        )
    linears = [_linears(layer) for layer in layers]
    stored = [{m: f for m, e in found.items() if (f := stored_format(e))} for found in linears]
    same = SAME_CODES.get(chosen.format, ())
    taken = {m for found in stored for m, f in found.items() if f in same}
    scaled = {m for found in linears for m, e in found.items() if has_input_scale(e)}
    modules = tuple(
        m
        for m, entry in linears[0].items()
        if (m in taken if taken else re.fullmatch(str(chosen.linears), m))
        and (m in scaled or not chosen.static)
        and _fits(chosen.format, entry)
    )
    if plain_layers is None:
        plain_layers = _default_plain(chosen, stored, modules)
    plain = {
        i
        for i, found in enumerate(linears)
        if i in plain_layers
        or (chosen.static and not all(has_input_scale(found[m]) for m in modules))
    }
    if not modules or len(plain) == len(layers):
        raise UnsupportedError(_nothing_left(chosen, linears))
    used = [f for i, found in enumerate(stored) if i not in plain for f in found.values()]
    return QuantPlan(
        scheme=chosen,
        modules=modules,
        plain_layers=tuple(sorted(plain)),
        exact=bool(used) and all(f in same for f in used),
    )


def _linears(layer: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The linears of a block that any scheme may quantise."""
    modules = {n.removesuffix(".weight"): e for n, e in layer.items() if n.endswith(".weight")}
    return {m: e for m, e in modules.items() if re.fullmatch(BLOCK_LINEARS, m)}


def _default_plain(
    scheme: Scheme, stored: list[dict[str, str]], modules: Collection[str]
) -> set[int]:
    if any(stored):
        return {i for i, found in enumerate(stored) if not found.keys() & set(modules)}
    count = len(stored)
    if not scheme.keep_ends or count < MANY_BLOCKS:
        return set()
    return {*range(FIRST_BLOCKS), *range(count - LAST_BLOCKS, count)}


def _fits(format_name: str, weight: TensorEntry) -> bool:
    out, width = weight.shape
    if format_name == "nvfp4":
        return width % 32 == 0 and out % 8 == 0
    if format_name == "int4":
        return out % 2 == 0 and width % min(128, width) == 0
    return True


def _nothing_left(scheme: Scheme, linears: list[dict[str, TensorEntry]]) -> str:
    if scheme.static and not any(has_input_scale(e) for found in linears for e in found.values()):
        dynamic = scheme.name.removesuffix("-static")
        return (
            f"precision={scheme.name!r} needs a checkpoint with activation scales (input_scale), "
            f"this one has none; use {dynamic!r}, which computes them."
        )
    names = [s.name for s in SCHEMES.values() if s.format is None]
    return (
        f"precision={scheme.name!r} would quantise nothing in this model: every layer stays in 16 "
        f"bits or its sizes do not fit; use {', '.join(names)}."
    )
