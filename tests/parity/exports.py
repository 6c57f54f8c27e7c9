"""Graphs that tests export: kept for the next run and with the tests (`tests/kept_graphs.py`)."""

from __future__ import annotations

from ltx2rt.env import cache_dir
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt_export.component import Component
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.component_graph import component_precision, rewrite_graph


def exported(component: Component, dtype: str = "float32") -> ExportedGraph:
    """As `export_component`."""
    return GraphCache(EngineCache(cache_dir())).export(component, dtype)


def exported_in(component: Component, precision: str) -> ExportedGraph:
    """As `export_in_precision`."""
    chosen = component_precision(component.name, precision)
    return rewrite_graph(exported(component, PRECISIONS[chosen].dtype), chosen)
