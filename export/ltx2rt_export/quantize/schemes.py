"""The table of precisions, and the one way from a component to its graph in one of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from ltx2rt.errors import InternalError, OptionError, UnsupportedError
from ltx2rt.names import DURATION_HEAD, TRANSFORMER_BLOCK, VOCODER
from ltx2rt_export.component import Component
from ltx2rt_export.onnx import ExportedGraph, export_component
from ltx2rt_export.quantize.fp8 import quantize_fp8
from ltx2rt_export.quantize.int4 import quantize_int4
from ltx2rt_export.quantize.int8 import quantize_int8
from ltx2rt_export.quantize.linears import find_linears
from ltx2rt_export.quantize.nvfp4 import quantize_nvfp4

#: components that need float32 whatever is asked for: bandwidth extension and waveforms lose
#: audible detail in 16 bits (spec/audio.md); seconds are rounded to frames (spec/duration_head.md)
FLOAT32_COMPONENTS = (VOCODER, "mel_front_end", DURATION_HEAD)

#: the component whose linears quantised schemes change
QUANTIZED_COMPONENT = TRANSFORMER_BLOCK

#: the linears of a block that official fp8 files quantise (spec/quantization.md §1); gates,
#: norms, tables and everything outside the blocks stay in 16 bits (spec/quantization.md §8)
BLOCK_LINEARS = r".*\.(to_q|to_k|to_v|to_out\.0)|(audio_)?ff\.net\.(0\.proj|2)"

#: those whose rows are video tokens: what official nvfp4 casts change (spec/quantization.md §4.4)
VIDEO_LINEARS = (
    r"attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_q|to_out\.0)"
    r"|audio_to_video_attn\.(to_q|to_out\.0)|video_to_audio_attn\.(to_k|to_v)|ff\.net\.(0\.proj|2)"
)

Pass = Callable[[ExportedGraph, Collection[str]], ExportedGraph]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One precision.

    Attributes:
        dtype: of weights and activations that are not quantised.
        min_sm: lowest compute capability that runs it, times ten; 0 for any, and for a CPU.
        linears: pattern of the module names that it changes, of `QUANTIZED_COMPONENT`; None: none.
        rewrite: the graph pass.
        format: of its weights, a key of `codecs.engine_formats.ENGINE_FORMATS`.
        static: activation scales come from the file.
        keep_ends: the first and the last blocks stay in 16 bits, as released files have it.
    """

    name: str
    dtype: str
    min_sm: int
    linears: str | None = None
    rewrite: Pass | None = None
    format: str | None = None
    static: bool = False
    keep_ends: bool = False


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="fp32", dtype="float32", min_sm=0),
        Scheme(name="bf16", dtype="bfloat16", min_sm=80),
        Scheme(name="fp16", dtype="float16", min_sm=75),
        Scheme(
            name="fp8",
            dtype="bfloat16",
            min_sm=89,
            linears=BLOCK_LINEARS,
            rewrite=partial(quantize_fp8, static=False),
            format="fp8",
            keep_ends=True,
        ),
        Scheme(
            name="fp8-static",
            dtype="bfloat16",
            min_sm=89,
            linears=BLOCK_LINEARS,
            rewrite=partial(quantize_fp8, static=True),
            format="fp8",
            static=True,
            keep_ends=True,
        ),
        Scheme(
            name="nvfp4",
            dtype="bfloat16",
            min_sm=100,
            linears=VIDEO_LINEARS,
            rewrite=partial(quantize_nvfp4, static=False),
            format="nvfp4",
            keep_ends=True,
        ),
        Scheme(
            name="nvfp4-static",
            dtype="bfloat16",
            min_sm=100,
            linears=BLOCK_LINEARS,
            rewrite=partial(quantize_nvfp4, static=True),
            format="nvfp4",
            static=True,
            keep_ends=True,
        ),
        Scheme(
            name="int8-wo",
            dtype="bfloat16",
            min_sm=80,
            linears=BLOCK_LINEARS,
            rewrite=quantize_int8,
            format="int8",
        ),
        Scheme(
            name="int4-wo",
            dtype="bfloat16",
            min_sm=80,
            linears=BLOCK_LINEARS,
            rewrite=quantize_int4,
            format="int4",
            keep_ends=True,
        ),
    )
}


#: what ONNX Runtime runs on a CPU, the rest of the graph in float32
CPU_PRECISIONS = ("fp32", "fp8", "fp8-static", "int8-wo")


def scheme_of(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in SCHEMES:
        raise OptionError(f"precision={name!r} is unknown; allowed: {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def component_precision(component: str, scheme: str) -> str:
    """The scheme that a component gets when `scheme` is asked for: only the transformer block is
    quantised, and some components stay in float32.
    """
    chosen = scheme_of(scheme)
    if component in FLOAT32_COMPONENTS:
        return "fp32"
    if chosen.rewrite is None or component == QUANTIZED_COMPONENT:
        return scheme
    return float_precision(chosen.dtype)


def float_precision(dtype: str) -> str:
    """The scheme that leaves all weights in a dtype."""
    return next(s.name for s in SCHEMES.values() if s.format is None and s.dtype == dtype)


def check_target(scheme: str, target: str) -> None:
    """Check that a GPU architecture (`sm89`) runs a precision.

    Raises:
        OptionError: the target is not written as `smNN`.
        UnsupportedError: it cannot; says which precisions it can.
    """
    chosen, match = scheme_of(scheme), re.fullmatch(r"sm_?(\d{2,3})[a-z]?", target.lower())
    if match is None:
        raise OptionError(f"target={target!r} is not a GPU architecture; write it as sm89.")
    capability = int(match[1])
    if capability < chosen.min_sm:
        possible = [s.name for s in SCHEMES.values() if s.min_sm <= capability]
        raise UnsupportedError(
            f"precision={scheme!r} needs sm{chosen.min_sm} or newer, the target is {target}; "
            f"it can run {', '.join(possible)}."
        )


def quantized_modules(graph: ExportedGraph, scheme: Scheme) -> tuple[str, ...]:
    """The linears of a graph that a scheme changes, in graph order."""
    pattern = scheme.linears
    if pattern is None or graph.component.name != QUANTIZED_COMPONENT:
        return ()
    found = find_linears(graph)
    names = [w.removesuffix(".weight") for w in graph.weights if w.endswith(".weight")]
    return tuple(n for n in names if n in found and re.fullmatch(pattern, n))


def export_scheme(
    component: Component,
    scheme: str,
    *,
    target: str | None = None,
    modules: Collection[str] | None = None,
    dtype: str | None = None,
) -> ExportedGraph:
    """Export a component in a precision.

    Args:
        component: any component; `component_precision` says what it gets.
        scheme: a name of `SCHEMES`.
        target: GPU architecture it is for, checked first.
        modules: linears to quantise instead of the scheme's own list.
        dtype: of what is not quantised, instead of the scheme's own: ONNX Runtime on a CPU has no
            bfloat16 kernels.

    Raises:
        OptionError, UnsupportedError: unknown scheme or target, or one that cannot run the other.
    """
    if target is not None:
        check_target(scheme, target)
    chosen = scheme_of(component_precision(component.name, scheme))
    graph = export_component(component, dtype or chosen.dtype)
    return rewrite(graph, chosen, modules)


def apply_scheme(
    graph: ExportedGraph,
    scheme: str,
    *,
    target: str | None = None,
    modules: Collection[str] | None = None,
) -> ExportedGraph:
    """A graph in a precision; arguments and errors as `export_scheme`.

    A float32 graph is traced again in the scheme's dtype, so that the module says which values
    stay float32; a graph that has the dtype already is only rewritten.
    """
    if target is not None:
        check_target(scheme, target)
    chosen = scheme_of(component_precision(graph.component.name, scheme))
    if graph.dtype == chosen.dtype:
        return rewrite(graph, chosen, modules)
    if graph.dtype != "float32":
        raise InternalError(f"a {graph.dtype} graph of {graph.component.name} was given {scheme}")
    return export_scheme(graph.component, scheme, modules=modules)


def rewrite(
    graph: ExportedGraph, scheme: Scheme, modules: Collection[str] | None = None
) -> ExportedGraph:
    """Quantise `modules` (by default the scheme's own list) of a graph in any float dtype."""
    if scheme.rewrite is None:
        return graph
    chosen = quantized_modules(graph, scheme) if modules is None else modules
    return scheme.rewrite(graph, chosen)
