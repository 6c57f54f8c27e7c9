"""Operators, shipped variants and tuned configurations of 16-bit attention."""

from __future__ import annotations

from collections.abc import Mapping

from ltx2rt_kernels.spec import (
    SIXTEEN_BIT,
    Config,
    KernelSpec,
    Operator,
    ScalarSpec,
    TensorSpec,
)

#: head dims of the released models: video 128, audio and the exchange between the streams 64
HEAD_DIMS = (128, 64)

Q = TensorSpec(name="q", dtype="T", shape=("B", "H", "T", "Dh"))
K = TensorSpec(name="k", dtype="T", shape=("B", "H", "S", "Dh"))
V = TensorSpec(name="v", dtype="T", shape=("B", "S", "H * Dh"))
#: R is 1 (a bias of keys) or T
BIAS = TensorSpec(name="bias", dtype="T", shape=("B", "1", "R", "S"))
OUT = TensorSpec(name="out", dtype="T", shape=("B", "T", "H * Dh"))


def scale_of(head_dim: int) -> float:
    """The factor on scores, `1 / sqrt(Dh)`."""
    return float(head_dim**-0.5)


PLAIN = Operator(
    name="flash_attention",
    node="FlashAttention",
    package="flash_attention",
    inputs=(Q, K, V),
    outputs=(OUT,),
    attributes={"scale": scale_of(128)},
)
MASKED = Operator(
    name="masked_flash_attention",
    node="MaskedFlashAttention",
    package="flash_attention",
    inputs=(Q, K, V, BIAS),
    outputs=(OUT,),
    attributes={"scale": scale_of(128)},
)
OPERATORS = (PLAIN, MASKED)


def tiles(block_m: int, block_n: int, full_block_n: int) -> dict[str, int]:
    """Queries of a block, keys of a step, keys of a step with a bias for every query."""
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "FULL_BLOCK_N": full_block_n}


#: head dim -> architecture -> configuration. Chosen on a CPU: the largest tiles that neither spill
#: nor exceed shared memory; none was timed. `benchmarks.run kernels --search` times others.
CONFIGS: Mapping[int, Mapping[str, Config]] = {
    128: {
        "80": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 32)),
        "89": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 32)),
        "90a": Config(num_warps=8, num_stages=2, tiles=tiles(128, 128, 32)),
        "100a": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 16)),
        "120a": Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 16)),
    },
    64: {
        "80": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 32)),
        "89": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 32)),
        "90a": Config(num_warps=8, num_stages=3, tiles=tiles(128, 128, 32)),
        "100a": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 32)),
        "120a": Config(num_warps=8, num_stages=3, tiles=tiles(128, 64, 16)),
    },
}

#: tensor-core instructions that the machine code must hold
OPCODES = {
    "80": ("HMMA",),
    "89": ("HMMA",),
    "90a": ("HGMMA",),
    "100a": ("UTCHMMA",),
    "120a": ("HMMA",),
}


def kernel(operator: Operator, dtype: str, head_dim: int) -> KernelSpec:
    """A variant for `bf16` or `fp16`."""
    masked = operator is MASKED
    return KernelSpec(
        operator=operator,
        variant=f"{dtype}-{head_dim}",
        function="ltx2rt_kernels.flash_attention.triton:flash_attention",
        types={"T": dtype},
        sizes={"Dh": head_dim},
        attributes={"scale": scale_of(head_dim)},
        scalars=scalars(masked=masked),
        constexprs={} if masked else {"bias_ptr": None, "R": 1},
        configs=CONFIGS[head_dim],
        head_dim=head_dim,
        grid=("cdiv(T, BLOCK_M)", "B * H", "1"),
        opcodes=OPCODES,
    )


def scalars(*, masked: bool) -> tuple[ScalarSpec, ...]:
    """Sizes that the kernel is told at run time."""
    return tuple(ScalarSpec(name=n, value=n) for n in ("T", "S", "H", "R")[: 4 if masked else 3])


KERNELS = tuple(kernel(o, t, d) for o in OPERATORS for t in SIXTEEN_BIT for d in HEAD_DIMS)
