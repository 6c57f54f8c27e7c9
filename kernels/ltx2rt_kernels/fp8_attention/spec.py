"""Operators, shipped variants and tuned configurations of 8-bit attention.

A chain of nodes, because a TensorRT plugin launches one kernel: the mean of the keys and the
largest values are plain `ReduceMean` and `ReduceMax`, then `QuantizeQueries`, `QuantizeKeys`,
`QuantizeValues` and the attention itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from ltx2rt_kernels.flash_attention.spec import (
    BIAS,
    OUT,
    V,
    scalars,
    scale_of,
    tiles,
)
from ltx2rt_kernels.spec import (
    FP8_ARCHITECTURES,
    Config,
    KernelSpec,
    Operator,
    ScalarSpec,
    TensorSpec,
)

E4M3 = "fp8e4nv"

#: tokens of one head that share a scale
GROUP = 64
#: blocks of zeros still get a scale
LEAST_AMAX = 1e-12

#: tokens of quantised values: whole groups
PADDED = f"{GROUP} * cdiv(S, {GROUP})"

X = TensorSpec(name="x", dtype="T", shape=("B", "H", "T", "Dh"))
QUANTIZED = (
    TensorSpec(name="quantized", dtype=E4M3, shape=("B", "H", "T", "Dh")),
    TensorSpec(name="scale", dtype="fp32", shape=("B", "H", f"cdiv(T, {GROUP})")),
)
QUANTIZE_QUERIES = Operator(
    name="quantize_queries",
    node="QuantizeQueries",
    package="fp8_attention",
    inputs=(X,),
    outputs=QUANTIZED,
)
QUANTIZE_KEYS = Operator(
    name="quantize_keys",
    node="QuantizeKeys",
    package="fp8_attention",
    inputs=(X, TensorSpec(name="mean", dtype="T", shape=("B", "H", "1", "Dh"))),
    outputs=QUANTIZED,
)
QUANTIZE_VALUES = Operator(
    name="quantize_values",
    node="QuantizeValues",
    package="fp8_attention",
    inputs=(
        TensorSpec(name="v", dtype="T", shape=("B", "S", "W")),
        TensorSpec(name="amax", dtype="T", shape=("B", "1", "W")),
    ),
    outputs=(TensorSpec(name="quantized", dtype=E4M3, shape=("B", "W", PADDED)),),
)

_Q = TensorSpec(name="q", dtype=E4M3, shape=("B", "H", "T", "Dh"))
_K = TensorSpec(name="k", dtype=E4M3, shape=("B", "H", "S", "Dh"))
_SCALES = (
    TensorSpec(name="q_scale", dtype="fp32", shape=("B", "H", f"cdiv(T, {GROUP})")),
    TensorSpec(name="k_scale", dtype="fp32", shape=("B", "H", f"cdiv(S, {GROUP})")),
)
_V8 = TensorSpec(name="v", dtype=E4M3, shape=("B", "H * Dh", PADDED))
_V_AMAX = TensorSpec(name="v_amax", dtype="T", shape=("B", "1", "H * Dh"))


def _attention(name: str, node: str, *inputs: TensorSpec) -> Operator:
    return Operator(
        name=name,
        node=node,
        package="fp8_attention",
        inputs=inputs,
        outputs=(OUT,),
        attributes={"scale": scale_of(128)},
    )


#: 8-bit scores, 16-bit values
QK = _attention("fp8_qk_attention", "Fp8QkAttention", _Q, _K, V, *_SCALES)
MASKED_QK = _attention("masked_fp8_qk_attention", "MaskedFp8QkAttention", *QK.inputs, BIAS)
#: 8-bit scores, weights and values
FULL = _attention("fp8_attention", "Fp8Attention", _Q, _K, _V8, *_SCALES, _V_AMAX)
MASKED_FULL = _attention("masked_fp8_attention", "MaskedFp8Attention", *FULL.inputs, BIAS)

QUANTIZERS = (QUANTIZE_QUERIES, QUANTIZE_KEYS, QUANTIZE_VALUES)
ATTENTIONS = (QK, MASKED_QK, FULL, MASKED_FULL)
OPERATORS = (*QUANTIZERS, *ATTENTIONS)

#: channels of a block of `quantize_values`
VALUE_LANES = 64

#: One group of tokens a block; not timed.
QUANTIZER_CONFIGS = {arch: Config(num_warps=4) for arch in FP8_ARCHITECTURES}

#: head dim -> architecture -> configuration; a step of keys has one scale, so at most 64. Chosen
#: on a CPU, as those of `flash_attention`; none was timed.
CONFIGS: Mapping[int, Mapping[str, Config]] = {
    128: {
        "89": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 32)),
        "90a": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 32)),
        "100a": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 32)),
        "120a": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 32)),
    },
    64: {
        "89": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 32)),
        "90a": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 32)),
        "100a": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 32)),
        "120a": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 32)),
    },
}

#: tensor-core instructions that the machine code must hold: 8-bit ones, and 16-bit ones for values
OPCODES = {"89": ("QMMA",), "90a": ("QGMMA",), "100a": ("UTCQMMA",), "120a": ("QMMA",)}
OPCODES_QK = {
    "89": ("QMMA", "HMMA"),
    "90a": ("QGMMA", "HGMMA"),
    "100a": ("UTCQMMA", "UTCHMMA"),
    "120a": ("QMMA", "HMMA"),
}


def quantizer(operator: Operator, dtype: str, head_dim: int) -> KernelSpec:
    """A variant of a quantiser; that of values serves every head dim."""
    if operator is QUANTIZE_VALUES:
        return KernelSpec(
            operator=operator,
            variant=dtype,
            function="ltx2rt_kernels.fp8_attention.triton:quantize_values",
            types={"T": dtype},
            scalars=(
                ScalarSpec(name="S", value="S"),
                ScalarSpec(name="W", value="W", divisible_by=VALUE_LANES),
            ),
            constexprs={"LANES": VALUE_LANES},
            configs=QUANTIZER_CONFIGS,
            grid=(f"cdiv(S, {GROUP})", f"W // {VALUE_LANES}", "B"),
        )
    return KernelSpec(
        operator=operator,
        variant=f"{dtype}-{head_dim}",
        function="ltx2rt_kernels.fp8_attention.triton:quantize_tokens",
        types={"T": dtype},
        sizes={"Dh": head_dim},
        scalars=(ScalarSpec(name="T", value="T"),),
        constexprs={} if operator is QUANTIZE_KEYS else {"mean_ptr": None},
        configs=QUANTIZER_CONFIGS,
        head_dim=head_dim,
        grid=(f"cdiv(T, {GROUP})", "B * H", "1"),
    )


def kernel(operator: Operator, dtype: str, head_dim: int) -> KernelSpec:
    """A variant of an attention; `dtype` is that of 16-bit tensors."""
    masked = BIAS in operator.inputs
    absent: dict[str, int | None] = {} if masked else {"bias_ptr": None, "R": 1}
    if _V_AMAX not in operator.inputs:
        absent["v_amax_ptr"] = None
    configs = CONFIGS[head_dim]
    if operator is MASKED_QK and head_dim == 128:  # keeps within the registers of 10.0
        small = Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 16))
        configs = {**configs, "100a": small}
    return KernelSpec(
        operator=operator,
        variant=f"{dtype}-{head_dim}",
        function="ltx2rt_kernels.fp8_attention.triton:fp8_attention",
        types={"T": dtype},
        sizes={"Dh": head_dim},
        attributes={"scale": scale_of(head_dim)},
        scalars=scalars(masked=masked),
        constexprs=absent,
        configs=configs,
        head_dim=head_dim,
        grid=("cdiv(T, BLOCK_M)", "B * H", "1"),
        opcodes=OPCODES_QK if operator in (QK, MASKED_QK) else OPCODES,
    )


#: What the graph pass uses: video self-attention, which has a bias and heads of 128. All others
#: compile and are tested.
KERNELS = (
    *(quantizer(o, "bf16", 128) for o in QUANTIZERS),
    kernel(MASKED_FULL, "bf16", 128),
)
