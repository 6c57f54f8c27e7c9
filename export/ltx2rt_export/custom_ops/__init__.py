"""Swap patterns of an exported graph for the `ltx2rt::` operators."""

from ltx2rt_export.custom_ops.apply import apply_custom_ops
from ltx2rt_export.custom_ops.kernels import require_compiler, used_operators, write_kernels
from ltx2rt_export.custom_ops.table import MODES, operators_for

__all__ = [
    "MODES",
    "apply_custom_ops",
    "operators_for",
    "require_compiler",
    "used_operators",
    "write_kernels",
]
