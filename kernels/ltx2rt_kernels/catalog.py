"""The table of operators: which folder holds what."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.spec import KernelSpec, Operator

#: folders of this package; each has `spec.py` with `OPERATORS` and `KERNELS`
PACKAGES: tuple[str, ...] = (
    "qk_norm_rope",
    "adaln_modulate",
    "gated_residual",
    "rms_norm_quant",
    "flash_attention",
    "fp8_attention",
)


def operators() -> dict[str, Operator]:
    """All operators by name."""
    return {o.name: o for p in PACKAGES for o in _module(p).OPERATORS}


def kernels(names: Sequence[str] | None = None) -> tuple[KernelSpec, ...]:
    """Kernels of the operators named, or of all.

    Raises:
        KernelError: an operator is unknown.
    """
    every = tuple(k for p in PACKAGES for k in _module(p).KERNELS)
    if names is None:
        return every
    known = operators()
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise KernelError(f"no operator {', '.join(unknown)}; there are: {', '.join(known)}")
    return tuple(k for k in every if k.operator.name in names)


def _module(package: str) -> ModuleType:
    return importlib.import_module(f"ltx2rt_kernels.{package}.spec")
