"""RMS norm + quantisation in plain operators."""

from __future__ import annotations

import onnx

from ltx2rt_kernels.function import attribute, ints, make_function, quantize_tokens, rms_norm
from ltx2rt_kernels.spec import Operator


def build(operator: Operator) -> onnx.FunctionProto:
    """Body of `RmsNormQuant`."""
    return make_function(
        operator,
        [
            attribute(operator, "epsilon", "epsilon"),
            ints("last_axis", [-1]),
            *rms_norm("x"),
            *quantize_tokens("x_unit", "codes", "amax"),
        ],
    )
