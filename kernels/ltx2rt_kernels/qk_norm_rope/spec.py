"""Operators, shipped variants and tuned configurations of QK norm + RoPE."""

from __future__ import annotations

from ltx2rt_kernels.spec import (
    ARCHITECTURES,
    SIXTEEN_BIT,
    Config,
    KernelSpec,
    Operator,
    ScalarSpec,
    TensorSpec,
)

EPSILON = 1e-6  # `norm_eps` of every released model


def _operator(name: str, node: str, q_table: tuple[str, ...], k_table: tuple[str, ...]) -> Operator:
    return Operator(
        name=name,
        node=node,
        package="qk_norm_rope",
        inputs=(
            TensorSpec(name="q", dtype="T", shape=("B", "Tq", "W")),
            TensorSpec(name="k", dtype="T", shape=("B", "Tk", "W")),
            TensorSpec(name="q_weight", dtype="T", shape=("W",)),
            TensorSpec(name="k_weight", dtype="T", shape=("W",)),
            TensorSpec(name="q_cos", dtype="T", shape=q_table),
            TensorSpec(name="q_sin", dtype="T", shape=q_table),
            TensorSpec(name="k_cos", dtype="T", shape=k_table),
            TensorSpec(name="k_sin", dtype="T", shape=k_table),
        ),
        outputs=(
            TensorSpec(name="q_out", dtype="T", shape=("B", "H", "Tq", "W // H")),
            TensorSpec(name="k_out", dtype="T", shape=("B", "H", "Tk", "W // H")),
        ),
        attributes={"num_heads": 32, "epsilon": EPSILON},
        attribute_sizes={"H": "num_heads"},
    )


SPLIT = _operator(
    "qk_norm_rope",
    "QkNormRope",
    ("B", "H", "Tq", "W // H // 2"),
    ("B", "H", "Tk", "W // H // 2"),
)
INTERLEAVED = _operator(
    "qk_norm_rope_interleaved", "QkNormRopeInterleaved", ("B", "Tq", "W"), ("B", "Tk", "W")
)
OPERATORS = (SPLIT, INTERLEAVED)

#: Not timed: four warps hold a row of 4096 in 32 values a thread, in 16-byte accesses.
CONFIGS = {arch: Config(num_warps=4) for arch in ARCHITECTURES}


def kernel(operator: Operator, dtype: str, heads: int, head_dim: int) -> KernelSpec:
    """A variant; heads and head_dim are powers of two."""
    return KernelSpec(
        operator=operator,
        variant=f"{dtype}-{heads}x{head_dim}",
        function="ltx2rt_kernels.qk_norm_rope.triton:qk_norm_rope",
        types={"T": dtype},
        sizes={"H": heads, "W": heads * head_dim},
        attributes={"num_heads": heads, "epsilon": EPSILON},
        scalars=(ScalarSpec(name="Tq", value="Tq"), ScalarSpec(name="Tk", value="Tk")),
        constexprs={"Dh": head_dim, "INTERLEAVED": operator is INTERLEAVED},
        configs=CONFIGS,
        head_dim=head_dim,
        grid=("2 * max(Tq, Tk)", "B", "1"),
        opcodes={arch: ("LDG.E.128", "STG.E.128") for arch in CONFIGS},
    )


#: Video self-attention has heads of 128; audio, and the exchange between the streams, of 64. No
#: released model rotates interleaved lanes.
KERNELS = tuple(kernel(SPLIT, t, 32, d) for t in SIXTEEN_BIT for d in (128, 64))
