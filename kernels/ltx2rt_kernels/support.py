"""Whether an operator has a kernel for a GPU, a dtype and a head size; says why not."""

from __future__ import annotations

from collections.abc import Callable

from ltx2rt_kernels import catalog
from ltx2rt_kernels.spec import ARCHITECTURES, KernelSpec


def supports(op: str, arch: str, dtype: str, head_dim: int | None = None) -> str | None:
    """The reason why no shipped kernel can run, in one sentence; None when one can.

    Args:
        op: operator name, `"qk_norm_rope"`.
        arch: architecture name, `"90a"`.
        dtype: of the first input, `"bf16"`.
        head_dim: width of a head, for operators that know heads.
    """
    known = catalog.operators()
    if op not in known:
        return f"there is no operator {op}; there are: {', '.join(known)}"
    if arch not in ARCHITECTURES:
        return f"there is no architecture {arch}; there are: {', '.join(ARCHITECTURES)}"
    specs = catalog.kernels([op])
    if not specs:
        return f"{op} ships no kernel; its function body runs everywhere"
    wanted: list[tuple[str, object, Callable[[KernelSpec], set[object]]]] = [
        ("architecture", arch, lambda k: set(k.configs)),
        ("dtype", dtype, lambda k: {k.dtype(k.operator.inputs[0])}),
    ]
    if head_dim is not None:
        wanted.append(("head_dim", head_dim, lambda k: {k.head_dim}))
    for what, value, offered in wanted:
        left = tuple(k for k in specs if value in offered(k))
        if not left:
            choices = sorted({str(o) for k in specs for o in offered(k)})
            return f"{op} has no kernel for {what} {value}; it has: {', '.join(choices)}"
        specs = left
    return None
