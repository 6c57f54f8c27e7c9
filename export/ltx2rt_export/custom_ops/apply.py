"""The graph pass: find the patterns, put the operators in their places."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import onnx

from ltx2rt.errors import InternalError, UnsupportedError
from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt_export.custom_ops.patterns import (
    INTERLEAVED,
    Attention,
    find_attentions,
    match_norm_rope,
)
from ltx2rt_export.custom_ops.rewrite import Rewriter
from ltx2rt_export.custom_ops.rows import find_gated_residuals, find_modulations
from ltx2rt_export.custom_ops.table import (
    ADALN_MODULATE,
    ARCHITECTURES,
    FLASH_ATTENTION,
    FP8_ATTENTION,
    GATED_RESIDUAL,
    QK_NORM_ROPE,
    operators_for,
)
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_kernels import catalog
from ltx2rt_kernels.adaln_modulate.spec import GATHERED as ADALN
from ltx2rt_kernels.flash_attention import spec as flash
from ltx2rt_kernels.fp8_attention import spec as fp8
from ltx2rt_kernels.gated_residual.spec import GATHERED as GATED
from ltx2rt_kernels.qk_norm_rope import spec as qk
from ltx2rt_kernels.spec import DOMAIN, KERNEL_DTYPES, KernelSpec

#: the attention whose keys are so many that quantising them pays: named by its bias
LONG_ATTENTION = "video_attention_bias"


def apply_custom_ops(
    graph: ExportedGraph, *, backend: str, target: str | None, precision: str, mode: str = "auto"
) -> ExportedGraph:
    """The graph with custom operators and their function bodies; other components unchanged.

    Args:
        graph: in its precision, after the passes that quantise linears; it is not changed.
        backend: `onnxruntime`, `tensorrt-rtx` or `tensorrt`.
        target: GPU architecture (`sm90`); needed for `tensorrt`.
        precision: name of the graph's precision.
        mode: `auto`, `on` or `off`; see `operators_for`.

    Raises:
        OptionError: an unknown backend or mode.
        UnsupportedError: `on`, and a pattern has no kernel for this target, type and size.
        InternalError: an attention of the graph does not look as expected.
    """
    if graph.component.name not in TRANSFORMER_BLOCKS:
        return graph
    names = operators_for(backend, target, precision, mode)
    if not names:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    rewriter = Rewriter(model)
    for name in PASSES:
        if name in names:
            PASSES[name](rewriter)
            rewriter.refresh()
    rewriter.finish()
    left = [n.name for n in model.graph.node if n.op_type == "Softmax"]
    if left and FLASH_ATTENTION in names:
        raise InternalError(f"{graph.component.name} has unknown attentions at {', '.join(left)}")
    if backend == "tensorrt":
        _check_kernels(model, ARCHITECTURES[target or ""], KERNEL_DTYPES[graph.dtype])
    return dataclasses.replace(graph, model=model)


def _qk_norm_rope(rewriter: Rewriter) -> None:
    """Norm and rotate q and k of every attention with RoPE, side by side."""
    index = rewriter.index
    for site in find_attentions(rewriter.model.graph, index):
        q = match_norm_rope(index, site.q, by_token=False)
        k = match_norm_rope(index, site.k, by_token=site.k_by_token)
        if q is None or k is None or (q.layout, q.epsilon) != (k.layout, k.epsilon):
            continue
        operator = qk.INTERLEAVED if q.layout == INTERLEAVED else qk.SPLIT
        k_out = f"{site.k}.by_head" if site.k_by_token else site.k
        rewriter.call(
            operator,
            [q.x, k.x, q.weight, k.weight, q.cos, q.sin, k.cos, k.sin],
            [site.q, k_out],
            num_heads=site.heads,
            epsilon=q.epsilon,
        )
        if site.k_by_token:
            rewriter.standard("Transpose", [k_out], site.k, perm=[0, 2, 1, 3])


def _adaln_modulate(rewriter: Rewriter) -> None:
    for site in find_modulations(rewriter.model.graph, rewriter.index):
        inputs = [site.x, site.scale, site.shift, site.index]
        rewriter.call(ADALN, inputs, [site.out], epsilon=site.epsilon)


def _gated_residual(rewriter: Rewriter) -> None:
    for site in find_gated_residuals(rewriter.model.graph, rewriter.index):
        rewriter.call(GATED, [site.x, site.y, site.gate, site.index], [site.out])


def _fp8_attention(rewriter: Rewriter) -> None:
    """The long attention alone: elsewhere quantising costs more than it saves."""
    for site in find_attentions(rewriter.model.graph, rewriter.index):
        if site.bias == LONG_ATTENTION:
            _swap_attention(rewriter, site, _fp8_call)


def _flash_attention(rewriter: Rewriter) -> None:
    for site in find_attentions(rewriter.model.graph, rewriter.index):
        _swap_attention(rewriter, site, _flash_call)


#: operator -> its pass, in order
PASSES: Mapping[str, Callable[[Rewriter], None]] = {
    QK_NORM_ROPE: _qk_norm_rope,
    ADALN_MODULATE: _adaln_modulate,
    GATED_RESIDUAL: _gated_residual,
    FP8_ATTENTION: _fp8_attention,
    FLASH_ATTENTION: _flash_attention,
}


def _swap_attention(
    rewriter: Rewriter, site: Attention, call: Callable[[Rewriter, Attention, str, str], None]
) -> None:
    """Keys by head, the operator, and its result as the graph goes on with it."""
    keys = rewriter.index.transposed(site.k, (0, 2, 1, 3)) if site.k_by_token else site.k
    if keys is None:
        keys = f"{site.out}.keys"
        rewriter.standard("Transpose", [site.k], keys, perm=[0, 2, 1, 3])
    joined = f"{site.out}.joined"
    call(rewriter, site, keys, joined)
    by_head = rewriter.constant(0, 0, site.heads, site.head_dim)
    rewriter.standard("Reshape", [joined, by_head], site.out)


def _flash_call(rewriter: Rewriter, site: Attention, keys: str, out: str) -> None:
    operator = flash.PLAIN if site.bias is None else flash.MASKED
    inputs = [site.q, keys, site.v, *([site.bias] if site.bias else [])]
    rewriter.call(operator, inputs, [out], scale=flash.scale_of(site.head_dim))


def _fp8_call(rewriter: Rewriter, site: Attention, keys: str, out: str) -> None:
    names = ("q8", "q_scale", "k8", "k_scale", "v8", "k_mean", "v_abs", "v_amax")
    q8, q_scale, k8, k_scale, v8, mean, magnitude, amax = (f"{site.out}.{n}" for n in names)
    rewriter.standard("ReduceMean", [keys, rewriter.constant(2)], mean, keepdims=1)
    rewriter.standard("Abs", [site.v], magnitude)
    rewriter.standard("ReduceMax", [magnitude, rewriter.constant(1)], amax, keepdims=1)
    rewriter.call(fp8.QUANTIZE_QUERIES, [site.q], [q8, q_scale])
    rewriter.call(fp8.QUANTIZE_KEYS, [keys, mean], [k8, k_scale])
    rewriter.call(fp8.QUANTIZE_VALUES, [site.v, amax], [v8])
    inputs = [q8, k8, v8, q_scale, k_scale, amax, LONG_ATTENTION]
    rewriter.call(fp8.MASKED_FULL, inputs, [out], scale=flash.scale_of(site.head_dim))


def _check_kernels(model: onnx.ModelProto, arch: str, dtype: str) -> None:
    """Every attention, norm and quantiser has a kernel for its attributes and this dtype."""
    operators = {o.node: o for o in catalog.operators().values()}
    problems = set()
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        operator = operators[node.op_type]
        asked = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        kernels = [k for k in catalog.kernels([operator.name]) if arch in k.configs]
        if not any(_fits(kernel, asked, dtype) for kernel in kernels):
            given = ", ".join(f"{n}={asked[n]:g}" for n in operator.attributes)
            there = ", ".join(k.variant for k in kernels) or "none"
            problems.add(f"{node.op_type} ({given}); there are: {there}")
    if problems:
        what = f"custom_ops='on': no {dtype} kernel on {arch} for"
        raise UnsupportedError(what, sorted(problems))


def _fits(kernel: KernelSpec, asked: Mapping[str, int | float], dtype: str) -> bool:
    values = kernel.attributes.items()
    return kernel.types["T"] == dtype and all(
        math.isclose(asked[n], v, rel_tol=1e-6) for n, v in values
    )
