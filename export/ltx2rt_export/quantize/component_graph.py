"""The one way from a component to its graph in a precision."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from ltx2rt.errors import InternalError, OptionError, UnsupportedError
from ltx2rt.names import DURATION_HEAD, TEXT_TAIL, VOCODER
from ltx2rt.weights.precision import PRECISIONS, float_precision, precision_of
from ltx2rt_export.component import Component
from ltx2rt_export.engines.weights import fold_transposes, weights_as_inputs
from ltx2rt_export.graph import ExportedGraph, inputs_to_initializers
from ltx2rt_export.quantize.linears import find_linears
from ltx2rt_export.quantize.rewrites import QUANTIZED_COMPONENT, REWRITES, TAIL_PRECISION

#: components that need float32 whatever is asked for: bandwidth extension and waveforms lose
#: audible detail in 16 bits (spec/audio.md); seconds are rounded to frames (spec/duration_head.md)
FLOAT32_COMPONENTS = (VOCODER, "mel_front_end", DURATION_HEAD)


def component_precision(component: str, precision: str) -> str:
    """What a component gets when `precision` is asked of it: only the transformer block and parts
    of the text encoder are quantised, and some components stay in float32.
    """
    row = precision_of(precision)
    if component in FLOAT32_COMPONENTS:
        return float_precision("float32").name
    if row.stored is not None and component != QUANTIZED_COMPONENT:
        return float_precision(row.dtype).name
    if row.format is None:
        return precision
    if REWRITES[precision].pattern(component) is None:
        return float_precision(row.dtype).name
    return TAIL_PRECISION if component == TEXT_TAIL else precision


def check_precision(precision: str, target: str) -> None:
    """Check that a GPU architecture (`sm89`) runs a precision.

    Raises:
        OptionError: the target is not written as `smNN`.
        UnsupportedError: it cannot; says which precisions it can.
    """
    row, match = precision_of(precision), re.fullmatch(r"sm_?(\d{2,3})[a-z]?", target.lower())
    if match is None:
        raise OptionError(f"target={target!r} is not a GPU architecture; write it as sm89.")
    capability = int(match[1])
    if capability < row.min_sm or not row.on_gpu:
        possible = [p.name for p in PRECISIONS.values() if p.on_gpu and p.min_sm <= capability]
        needs = f"sm{row.min_sm} or newer" if row.on_gpu else "a CPU (backend onnxruntime)"
        raise UnsupportedError(
            f"precision={precision!r} needs {needs}, the target is {target}; "
            f"it can run {', '.join(possible)}."
        )


def quantized_modules(graph: ExportedGraph, precision: str) -> tuple[str, ...]:
    """The linears of a graph that a precision changes, in graph order."""
    rewrite = REWRITES.get(precision)
    pattern = None if rewrite is None else rewrite.pattern(graph.component.name)
    if pattern is None:
        return ()
    found = find_linears(graph)
    names = [w.removesuffix(".weight") for w in graph.weights if w.endswith(".weight")]
    return tuple(n for n in names if n in found and re.fullmatch(pattern, n))


def export_in_precision(
    component: Component,
    precision: str,
    *,
    target: str | None = None,
    modules: Collection[str] | None = None,
    dtype: str | None = None,
) -> ExportedGraph:
    """Export a component in a precision.

    Args:
        component: any component; `component_precision` says what it gets.
        precision: a name of `PRECISIONS`.
        target: GPU architecture it is for, checked first.
        modules: linears to quantise instead of the precision's own list.
        dtype: of what is not quantised, instead of the precision's own: ONNX Runtime on a CPU has
            no bfloat16 kernels.

    Raises:
        OptionError, UnsupportedError: unknown precision or target, or one that cannot run the
            other.
    """
    if target is not None:
        check_precision(precision, target)
    chosen = component_precision(component.name, precision)
    from ltx2rt_export.onnx import export_component

    graph = export_component(component, dtype or PRECISIONS[chosen].dtype)
    return rewrite_graph(graph, chosen, modules)


def apply_precision(
    graph: ExportedGraph,
    precision: str,
    *,
    target: str | None = None,
    modules: Collection[str] | None = None,
) -> ExportedGraph:
    """A graph in a precision; arguments and errors as `export_in_precision`.

    A float32 graph is traced again in the precision's dtype, so that the module says which values
    stay float32; a graph that has the dtype already is only rewritten.
    """
    if target is not None:
        check_precision(precision, target)
    chosen = component_precision(graph.component.name, precision)
    if graph.dtype == PRECISIONS[chosen].dtype:
        return rewrite_graph(graph, chosen, modules)
    if graph.dtype != "float32":
        name = graph.component.name
        raise InternalError(f"{precision} was asked of a {graph.dtype} graph of {name}")
    return export_in_precision(graph.component, precision, modules=modules)


def rewrite_graph(
    graph: ExportedGraph, precision: str, modules: Collection[str] | None = None
) -> ExportedGraph:
    """Quantise `modules` (by default the precision's own list) of a graph in any float dtype."""
    rewrite = REWRITES.get(precision)
    if rewrite is None:
        return graph
    injected = graph.component.weight_binding == "initializer"
    if injected:  # passes know weights that are inputs, `[in, out]`
        graph = fold_transposes(graph)
        graph = dataclasses.replace(graph, model=weights_as_inputs(graph.model))
    chosen = quantized_modules(graph, precision) if modules is None else modules
    graph = rewrite.graph(graph, chosen)
    if injected:
        inputs_to_initializers(graph.model, graph.weights)
    return graph
