"""What a build adds to the precisions that quantise: which linears, the graph pass and its twin in
PyTorch. The rows themselves are `ltx2rt.weights.precision`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ltx2rt.errors import InternalError
from ltx2rt.names import TEXT_BLOCKS, TEXT_TAIL, TRANSFORMER_BLOCK
from ltx2rt.weights.codecs.engine_formats import EngineFormat
from ltx2rt.weights.precision import PRECISIONS, Precision
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.fp8 import E4M3_MAX, linear_fp8, quantize_fp8
from ltx2rt_export.quantize.int4 import fits_int4, linear_int4, quantize_int4
from ltx2rt_export.quantize.int8 import linear_int8, quantize_int8
from ltx2rt_export.quantize.int8_dynamic import linear_int8_dynamic, quantize_int8_dynamic
from ltx2rt_export.quantize.nvfp4 import LARGEST, fits_nvfp4, linear_nvfp4, quantize_nvfp4

if TYPE_CHECKING:
    from torch import Tensor

#: the component whose linears a build's `precision` quantises; those of the text encoder have a
#: precision of their own
QUANTIZED_COMPONENT = TRANSFORMER_BLOCK

#: the linears of a block that official fp8 files quantise (spec/quantization.md §1); gates,
#: norms, tables and everything outside the blocks stay in 16 bits (spec/quantization.md §8)
BLOCK_LINEARS = r".*\.(to_q|to_k|to_v|to_out\.0)|(audio_)?ff\.net\.(0\.proj|2)"

#: those whose rows are video tokens: what official nvfp4 casts change (spec/quantization.md §4.4)
VIDEO_LINEARS = (
    r"attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_q|to_out\.0)"
    r"|audio_to_video_attn\.(to_q|to_out\.0)|video_to_audio_attn\.(to_k|to_v)|ff\.net\.(0\.proj|2)"
)

#: the linears of a layer of Gemma
_GEMMA_LINEARS = r"layer\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"

#: those of the text encoder: nearly all of its weights but the embeddings, which are no linear
TEXT_LINEARS: Mapping[str, str] = {
    **dict.fromkeys(TEXT_BLOCKS, _GEMMA_LINEARS),
    TEXT_TAIL: r"projection\.(text_embedding_projection\.\w+|\w+_connector\.transformer_1d_blocks"
    r"\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))",
}

#: what projections and connectors have where Gemma is quantised: they run once a prompt, so that
#: shorter codes would save nothing but memory, and they were trained in 16 bits
TAIL_PRECISION = "int8-wo"

Pass = Callable[[ExportedGraph, Collection[str]], ExportedGraph]

#: x, parts (`weight`, `weight_scale`, ...) as the graph takes them, bias -> result in x's dtype
EmulatedLinear = Callable[["Tensor", Mapping[str, "Tensor"], "Tensor | None"], "Tensor"]


def _any_size(outputs: int, inputs: int) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """How a precision is put into a graph.

    Attributes:
        precision: its row.
        linears: pattern of the module names that it changes, of `QUANTIZED_COMPONENT`.
        graph: the pass over an exported graph.
        linear: the arithmetic of one changed linear in PyTorch.
        fits: whether it can change a linear of so many outputs and inputs.
        static_range: the largest activation that a static scale of 1 stands for, where scales come
            from the file; None where the graph computes them, or needs none.
        keep_ends: the first and the last blocks stay in 16 bits, as released files have it.
        short_activations: of 8 bits or fewer on a GPU: their errors are accepted already.
    """

    precision: Precision
    linears: str
    graph: Pass
    linear: EmulatedLinear
    fits: Callable[[int, int], bool] = _any_size
    static_range: float | None = None
    keep_ends: bool = False
    short_activations: bool = False

    @property
    def format(self) -> EngineFormat:
        """Of the weights."""
        if self.precision.format is None:
            raise InternalError(f"precision {self.precision.name} has a rewrite but no format")
        return self.precision.format

    @property
    def static(self) -> bool:
        """Whether activation scales come from the file."""
        return self.static_range is not None

    def pattern(self, component: str) -> str | None:
        """Of the linears that it changes in a component; None: it leaves it alone."""
        if component == QUANTIZED_COMPONENT:
            return self.linears
        return TEXT_LINEARS.get(component) if self.precision.text else None


REWRITES: dict[str, Rewrite] = {
    rewrite.precision.name: rewrite
    for rewrite in (
        Rewrite(
            precision=PRECISIONS["fp8"],
            linears=BLOCK_LINEARS,
            graph=partial(quantize_fp8, static=False),
            linear=partial(linear_fp8, static=False),
            keep_ends=True,
            short_activations=True,
        ),
        Rewrite(
            precision=PRECISIONS["fp8-static"],
            linears=BLOCK_LINEARS,
            graph=partial(quantize_fp8, static=True),
            linear=partial(linear_fp8, static=True),
            static_range=E4M3_MAX,
            keep_ends=True,
            short_activations=True,
        ),
        Rewrite(
            precision=PRECISIONS["nvfp4"],
            linears=VIDEO_LINEARS,
            graph=partial(quantize_nvfp4, static=False),
            linear=partial(linear_nvfp4, static=False),
            fits=fits_nvfp4,
            keep_ends=True,
            short_activations=True,
        ),
        Rewrite(
            precision=PRECISIONS["nvfp4-static"],
            linears=BLOCK_LINEARS,
            graph=partial(quantize_nvfp4, static=True),
            linear=partial(linear_nvfp4, static=True),
            fits=fits_nvfp4,
            static_range=LARGEST,
            keep_ends=True,
            short_activations=True,
        ),
        Rewrite(
            precision=PRECISIONS["int8-wo"],
            linears=BLOCK_LINEARS,
            graph=quantize_int8,
            linear=linear_int8,
        ),
        Rewrite(
            precision=PRECISIONS["int8"],
            linears=BLOCK_LINEARS,
            graph=quantize_int8_dynamic,
            linear=linear_int8_dynamic,
            keep_ends=True,
        ),
        Rewrite(
            precision=PRECISIONS["int4-wo"],
            linears=BLOCK_LINEARS,
            graph=quantize_int4,
            linear=linear_int4,
            fits=fits_int4,
            keep_ends=True,
        ),
    )
}
