"""Operators, shipped variants and tuned configurations of adaptive layer norm."""

from __future__ import annotations

from ltx2rt_kernels.spec import (
    ARCHITECTURES,
    FP8_ARCHITECTURES,
    SIXTEEN_BIT,
    KernelSpec,
    Operator,
    TensorSpec,
    row_config,
)

EPSILON = 1e-6  # `norm_eps` of every released model


def _operator(name: str, node: str, *, gathered: bool, quantized: bool) -> Operator:
    rows = ("U", "W") if gathered else ("B", "T", "W")
    index = (TensorSpec(name="index", dtype="i64", shape=("B", "T")),) if gathered else ()
    codes = (
        TensorSpec(name="codes", dtype="fp8e4nv", shape=("B", "T", "W")),
        TensorSpec(name="amax", dtype="fp32", shape=("B", "T", "1")),
    )
    return Operator(
        name=name,
        node=node,
        package="adaln_modulate",
        inputs=(
            TensorSpec(name="x", dtype="T", shape=("B", "T", "W")),
            TensorSpec(name="scale", dtype="T", shape=rows),
            TensorSpec(name="shift", dtype="T", shape=rows),
            *index,
        ),
        outputs=codes if quantized else (TensorSpec(name="out", dtype="T", shape=("B", "T", "W")),),
        attributes={"epsilon": EPSILON},
    )


GATHERED = _operator("adaln_modulate", "AdalnModulate", gathered=True, quantized=False)
GATHERED_QUANT = _operator(
    "adaln_modulate_quant", "AdalnModulateQuant", gathered=True, quantized=True
)
PER_TOKEN = _operator(
    "adaln_modulate_per_token", "AdalnModulatePerToken", gathered=False, quantized=False
)
PER_TOKEN_QUANT = _operator(
    "adaln_modulate_per_token_quant", "AdalnModulatePerTokenQuant", gathered=False, quantized=True
)
OPERATORS = (GATHERED, GATHERED_QUANT, PER_TOKEN, PER_TOKEN_QUANT)


def is_gathered(operator: Operator) -> bool:
    """Whether tokens name the row they use."""
    return any(t.name == "index" for t in operator.inputs)


def is_quantized(operator: Operator) -> bool:
    """Whether the result is E4M3 codes."""
    return operator.outputs[0].name == "codes"


def kernel(operator: Operator, dtype: str, width: int) -> KernelSpec:
    """A variant; the width is a power of two."""
    tensors = {t.name for t in (*operator.inputs, *operator.outputs)}
    archs = FP8_ARCHITECTURES if is_quantized(operator) else tuple(ARCHITECTURES)
    return KernelSpec(
        operator=operator,
        variant=f"{dtype}-{width}",
        function="ltx2rt_kernels.adaln_modulate.triton:adaln_modulate",
        types={"T": dtype},
        sizes={"W": width},
        constexprs={
            f"{name}_ptr": None for name in ("index", "out", "codes", "amax") if name not in tensors
        },
        configs=dict.fromkeys(archs, row_config(width)),
        grid=("B * T", "1", "1"),
        opcodes={arch: ("LDG.E.128",) for arch in archs},
    )


#: widths of the streams; our graphs gather. Graphs with FP8 linears are BF16.
KERNELS = tuple(
    kernel(operator, dtype, width)
    for operator, dtypes in ((GATHERED, SIXTEEN_BIT), (GATHERED_QUANT, ("bf16",)))
    for dtype in dtypes
    for width in (4096, 2048)
)
