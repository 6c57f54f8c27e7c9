"""Operator, shipped variants and tuned configurations of RMS norm + quantisation."""

from __future__ import annotations

from ltx2rt_kernels.spec import FP8_ARCHITECTURES, KernelSpec, Operator, TensorSpec, row_config

EPSILON = 1e-6  # `norm_eps` of every released model

OPERATOR = Operator(
    name="rms_norm_quant",
    node="RmsNormQuant",
    package="rms_norm_quant",
    inputs=(TensorSpec(name="x", dtype="T", shape=("B", "T", "W")),),
    outputs=(
        TensorSpec(name="codes", dtype="fp8e4nv", shape=("B", "T", "W")),
        TensorSpec(name="amax", dtype="fp32", shape=("B", "T", "1")),
    ),
    attributes={"epsilon": EPSILON},
)
OPERATORS = (OPERATOR,)


def kernel(dtype: str, width: int) -> KernelSpec:
    """A variant; the width is a power of two."""
    return KernelSpec(
        operator=OPERATOR,
        variant=f"{dtype}-{width}",
        function="ltx2rt_kernels.rms_norm_quant.triton:rms_norm_quant",
        types={"T": dtype},
        sizes={"W": width},
        configs=dict.fromkeys(FP8_ARCHITECTURES, row_config(width)),
        grid=("B * T", "1", "1"),
        opcodes={arch: ("LDG.E.128",) for arch in FP8_ARCHITECTURES},
    )


#: widths of the streams
KERNELS = tuple(kernel("bf16", width) for width in (4096, 2048))
