"""INT4 weight-only linears: a scale per block of 128 inputs and output channel.

The weight is dequantised to float32 and rounded to the graph's dtype once; the GEMM is that of an
ordinary linear. Codes lie `[in, out]`: the other way costs two transposes a call on RTX.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import Emitter, Linear, replace_linears

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128

#: INT4 tensors and block scales came with it
OPSET = 21


def quantize_int4(graph: ExportedGraph, modules: Collection[str]) -> ExportedGraph:
    """Turn `modules` into INT4 weight-only linears.

    New weight inputs of a module: `weight` int4 `[in, out]` (first element in the low nibble),
    `weight_scale` float32 `[in/128, out]` (weight = code * scale).
    """
    return replace_linears(graph, modules, _emit, opset=OPSET, untransposed=True)


def _emit(to: Emitter, linear: Linear) -> None:
    name, outs, ins = linear.module, linear.out_features, linear.in_features
    block = min(BLOCK, ins)
    weight = to.weight_input(linear.weight, "int4", ins, outs)
    scale = to.weight_input(f"{name}.weight_scale", "float32", ins // block, outs)
    w = to.op("DequantizeLinear", [weight, scale], f"{name}.w_float32", axis=0, block_size=block)
    w = to.cast(w, to.dtype, "float32", f"{name}.w")
    y = to.op("MatMul", [linear.x, w], f"{name}.sum")
    if linear.bias is None:
        to.nodes[-1].output[0] = linear.output
    else:
        to.op("Add", [y, linear.bias], linear.output, outputs=[linear.output])


def fits_int4(outputs: int, inputs: int) -> bool:
    """Whether a linear has whole bytes of codes and whole blocks."""
    return outputs % 2 == 0 and inputs % min(BLOCK, inputs) == 0


def linear_int4(x: Tensor, parts: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """The arithmetic of the graph in PyTorch; arguments as `fp8.linear_fp8`, codes as packed
    bytes.
    """
    import torch

    codes = parts["weight"]
    values = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).float()
    values = torch.where(values > 7, values - 16, values)
    scale = parts["weight_scale"]
    blocks = values.reshape(scale.shape[0], -1, values.shape[1]) * scale.unsqueeze(1)
    y: Tensor = x @ blocks.flatten(0, 1).to(x.dtype)
    return y if bias is None else y + bias
