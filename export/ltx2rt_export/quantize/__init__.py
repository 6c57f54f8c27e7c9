"""Precision as graph passes: one small file a format (docs/architecture.md)."""

from ltx2rt_export.quantize.component_graph import (
    apply_precision,
    check_precision,
    component_precision,
    export_in_precision,
)

__all__ = ["apply_precision", "check_precision", "component_precision", "export_in_precision"]
