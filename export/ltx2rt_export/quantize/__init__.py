"""Precision as graph passes: one small file a scheme (docs/architecture.md)."""

from ltx2rt_export.quantize.schemes import (
    SCHEMES,
    Scheme,
    apply_scheme,
    check_target,
    component_precision,
    export_scheme,
)

__all__ = [
    "SCHEMES",
    "Scheme",
    "apply_scheme",
    "check_target",
    "component_precision",
    "export_scheme",
]
