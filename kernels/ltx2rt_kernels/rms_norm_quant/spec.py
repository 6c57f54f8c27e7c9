"""Operator, shipped variants and tuned configurations of RMS norm + quantisation."""

from __future__ import annotations

from ltx2rt_kernels.spec import Config, KernelSpec, Operator, TensorSpec

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

#: E4M3 conversions exist from 8.9 on
ARCHS = ("89", "90a", "100a", "120a")

#: Not timed. With 32 values a thread `adaln_modulate_quant` spills on sm_120a.
VALUES_PER_THREAD = 16


def kernel(dtype: str, width: int) -> KernelSpec:
    """A variant; the width is a power of two."""
    config = Config(num_warps=max(1, width // (32 * VALUES_PER_THREAD)))
    return KernelSpec(
        operator=OPERATOR,
        variant=f"{dtype}-{width}",
        function="ltx2rt_kernels.rms_norm_quant.triton:rms_norm_quant",
        types={"T": dtype},
        sizes={"W": width},
        configs=dict.fromkeys(ARCHS, config),
        grid=("B * T", "1", "1"),
        opcodes={arch: ("LDG.E.128",) for arch in ARCHS},
    )


#: widths of the streams
KERNELS = tuple(kernel("bf16", width) for width in (4096, 2048))
