"""Swap patterns of an exported graph for the `ltx2rt::` operators."""

from ltx2rt_export.custom_ops.apply import MODES, apply_custom_ops, operators_for

__all__ = ["MODES", "apply_custom_ops", "operators_for"]
