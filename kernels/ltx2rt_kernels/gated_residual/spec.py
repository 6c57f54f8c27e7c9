"""Operators, shipped variants and tuned configurations of the gated residual."""

from __future__ import annotations

from ltx2rt_kernels.spec import (
    ARCHITECTURES,
    SIXTEEN_BIT,
    KernelSpec,
    Operator,
    TensorSpec,
    row_config,
)


def _operator(name: str, node: str, *, gathered: bool) -> Operator:
    index = (TensorSpec(name="index", dtype="i64", shape=("B", "T")),) if gathered else ()
    rows = ("U", "W") if gathered else ("B", "T", "W")
    return Operator(
        name=name,
        node=node,
        package="gated_residual",
        inputs=(
            TensorSpec(name="x", dtype="T", shape=("B", "T", "W")),
            TensorSpec(name="y", dtype="T", shape=("B", "T", "W")),
            TensorSpec(name="gate", dtype="T", shape=rows),
            *index,
        ),
        outputs=(TensorSpec(name="out", dtype="T", shape=("B", "T", "W")),),
    )


GATHERED = _operator("gated_residual", "GatedResidual", gathered=True)
PER_TOKEN = _operator("gated_residual_per_token", "GatedResidualPerToken", gathered=False)
OPERATORS = (GATHERED, PER_TOKEN)


def kernel(operator: Operator, dtype: str, width: int) -> KernelSpec:
    """A variant; the width is a power of two."""
    return KernelSpec(
        operator=operator,
        variant=f"{dtype}-{width}",
        function="ltx2rt_kernels.gated_residual.triton:gated_residual",
        types={"T": dtype},
        sizes={"W": width},
        constexprs={} if operator is GATHERED else {"index_ptr": None},
        configs=dict.fromkeys(ARCHITECTURES, row_config(width)),
        grid=("B * T", "1", "1"),
        opcodes={arch: ("LDG.E.128", "STG.E.128") for arch in ARCHITECTURES},
    )


#: widths of the streams; our graphs gather
KERNELS = tuple(kernel(GATHERED, t, width) for t in SIXTEEN_BIT for width in (4096, 2048))
