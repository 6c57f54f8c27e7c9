"""A component: one module, the tensors at its boundary, and where its weights come from.

Everything that builds, exports, verifies or runs a part of the model speaks in `Component`s. A
factory beside each module (`modules/<name>.py`) makes one from a checkpoint's configuration and
tensor list; nothing is read but headers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from ltx2rt.engine import TensorSpec
from ltx2rt.errors import CheckpointError
from ltx2rt.weights.safetensors import MappedFiles, TensorEntry

#: tensor name (prefix of the component removed) -> where it lies
TensorIndex = Mapping[str, TensorEntry]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One exportable part of the model.

    Attributes:
        name: `video_decoder`, `transformer_block`, ... (one name from module to manifest).
        module: the module on the `meta` device; `forward` takes `inputs` by keyword and returns a
            tuple in the order of `outputs`. Its state-dict names are the official ones.
        inputs, outputs: the boundary; see `TensorSpec` for symbols.
        weights: state-dict name -> checkpoint tensor. For a repeated component: those of layer 0.
        layers: for a component that runs many times with other weights (the transformer block): one
            mapping a layer.
        weight_binding: `initializer` (injected when the engine loads) or `input` (bound at every
            call).
        trace: sizes of the symbols for tracing; every one >= 2, all different where they may
            differ.
        options: facts the runtime needs about this component (JSON values), copied to the manifest.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, TensorEntry]
    trace: Mapping[str, int]
    layers: tuple[Mapping[str, TensorEntry], ...] = ()
    weight_binding: Literal["initializer", "input"] = "initializer"
    options: Mapping[str, Any] = field(default_factory=dict)


def on_meta(make: Callable[[], M]) -> M:
    """Build a module without memory for its weights. Constants must name `device="cpu"`
    themselves.
    """
    with torch.device("meta"):
        return make().eval()


def match_weights(
    module: nn.Module, tensors: TensorIndex, where: str, prefix: str = ""
) -> dict[str, TensorEntry]:
    """Find every weight of `module` in `tensors`, under `prefix`; unknown tensors are ignored.

    Raises:
        CheckpointError: tensors are missing or have another shape; all are listed (the first ten by
            name).
    """
    found: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for name, weight in module.state_dict().items():
        entry = tensors.get(prefix + name)
        if entry is None:
            problems.append(f"{prefix + name} is missing")
        elif entry.shape != tuple(weight.shape):
            problems.append(
                f"{prefix + name} has shape {list(entry.shape)}, expected {list(weight.shape)}"
            )
        else:
            found[name] = entry
    if problems:
        shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise CheckpointError(f"{where} does not fit this model", shown)
    return found


def load_module(
    component: Component, dtype: torch.dtype = torch.float32, layer: int = 0
) -> nn.Module:
    """The component's module with its weights read into memory, on the CPU: the PyTorch reference.

    The component's own module stays on `meta`. Weights are converted to `dtype`.
    """
    import copy

    entries = component.layers[layer] if component.layers else component.weights
    return fill_module(copy.deepcopy(component.module), entries, dtype)


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
