"""Modules without weights, and with: built on `meta`, matched with a checkpoint, filled from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ltx2rt.weights.safetensors import MappedFiles, TensorEntry
from ltx2rt_export.component import Component, TensorIndex, match_shapes
from ltx2rt_export.modules.tables import Table

M = TypeVar("M", bound=nn.Module)


def on_meta(make: Callable[[], M]) -> M:
    """Build a module without memory for its weights. Constants must name `device="cpu"`
    themselves.
    """
    with torch.device("meta"):
        return make().eval()


def match_weights(
    module: nn.Module, tensors: TensorIndex, where: str, prefix: str = ""
) -> dict[str, TensorEntry]:
    """Find every weight of `module` in `tensors`, under `prefix`; see `component.match_shapes`."""
    shapes = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    return match_shapes(shapes, tensors, where, prefix)


def load_module(
    component: Component, dtype: torch.dtype = torch.float32, layer: int = 0
) -> nn.Module:
    """The component's module with its weights read into memory, on the CPU: the PyTorch reference.

    The component's own module stays on `meta`. Weights are converted to `dtype`.
    """
    entries = component.layers[layer] if component.layers else component.weights
    return fill_module(copy.deepcopy(component.network), entries, dtype)


def fill_module(
    module: nn.Module, entries: Mapping[str, TensorEntry], dtype: torch.dtype
) -> nn.Module:
    """Give a meta module real weights: floats are converted to `dtype`; returns the module, in
    eval mode.
    """
    files = MappedFiles()
    state = {
        name: torch.from_numpy(files.load(entry, "float32").copy()).to(dtype)
        for name, entry in entries.items()
    }
    module.load_state_dict(state, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def constant(values: NDArray[np.generic]) -> torch.Tensor:
    """A graph constant: lives on the CPU also while modules are built on the meta device."""
    kind = np.float32 if np.issubdtype(values.dtype, np.floating) else np.int64
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kind))


def add_table(module: nn.Module, name: str, table: Table) -> None:
    """Give a module a constant that is computed, under `name`, and note how (`tables_of`)."""
    module.register_buffer(name, constant(table.values()), persistent=False)
    module.__dict__.setdefault("tables", []).append(table)


def tables_of(module: nn.Module) -> list[Table]:
    """The computed constants of a module and of all its parts."""
    return [table for part in module.modules() for table in part.__dict__.get("tables", ())]
