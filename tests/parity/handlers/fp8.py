"""Goldens of the official fp8 helpers: numpy codecs, no backend involved."""

from __future__ import annotations

import numpy as np

from ltx2rt.weights.codecs import fp8
from ltx2rt.weights.floats import round_bfloat16
from tests.encoders import encode_activation, encode_per_tensor, static_linear
from tests.parity.golden import Case, Runner, handles


@handles("fp8")
def fp8_helpers(case: Case, run: Runner) -> dict[str, np.ndarray]:
    weight, bias, delta = (case.inputs[n] for n in ("weight", "bias", "delta"))
    scaled, scale = encode_per_tensor(weight)
    cast, cast_bias = fp8.encode(weight), fp8.encode(bias)
    fused, fused_scale = encode_per_tensor(fp8.decode_scaled(scaled, scale) + delta)
    input_scale = float(case.inputs["input_scale"])
    x = round_bfloat16(case.inputs["x"])
    folded = {
        name: round_bfloat16(fp8.decode_scaled(scaled, np.float32(factor)))
        for name, factor in case.params["prequant_scales"].items()
    }
    return {
        "scaled.weight": scaled,
        "scaled.scale": scale,
        "cast.weight": cast,
        "cast.bias": cast_bias,
        "cast.linear_f32": case.inputs["x"] @ fp8.decode(cast).T + fp8.decode(cast_bias),
        "cast.fused_weight": fp8.encode(round_bfloat16(fp8.decode(cast) + delta)),
        "scaled.linear_bf16": static_linear(x, scaled, float(scale), input_scale, bias),
        "scaled.quantised_input": encode_activation(case.inputs["x"], input_scale, "float32"),
        "scaled.fused_weight": fused,
        "scaled.fused_scale": fused_scale,
        "prequant.to_q": fp8.encode(folded["to_q"]),
        "prequant.proj_out": folded["proj_out"],
    }
