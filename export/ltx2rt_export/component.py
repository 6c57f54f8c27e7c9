"""A component: one module, the tensors at its boundary, and where its weights come from.

Everything that builds, exports, verifies or runs a part of the model speaks in `Component`s. A
factory beside each module (`modules/<name>.py`) makes one from a checkpoint's configuration and
tensor list; nothing is read but headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ltx2rt.engine import Array, TensorSpec
from ltx2rt.errors import CheckpointError, InternalError, shortened
from ltx2rt.weights.layout import transposed_copy
from ltx2rt.weights.safetensors import MappedFiles, TensorEntry

if TYPE_CHECKING:
    from torch import nn

    from ltx2rt_export.shipped.file import Shipped

#: tensor name (prefix of the component removed) -> where it lies
TensorIndex = Mapping[str, TensorEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One exportable part of the model.

    Attributes:
        name: `video_decoder`, `transformer_block`, ... (one name from module to manifest).
        module: the module on the `meta` device; `forward` takes `inputs` by keyword and returns a
            tuple in the order of `outputs`. Its state-dict names are the official ones. None where
            the component came with its graphs (`shipped`).
        inputs, outputs: the boundary; see `TensorSpec` for symbols.
        weights: state-dict name -> checkpoint tensor. For a repeated component: those of layer 0.
        layers: for a component that runs many times with other weights (the transformer block): one
            mapping a layer.
        weight_binding: `initializer` (injected when the engine loads), `input` (bound at every
            call) or `layer` (an engine a layer; see `ComponentEntry`).
        trace: sizes of the symbols for tracing; every one >= 2, all different where they may
            differ.
        options: facts the runtime needs about this component (JSON values), copied to the manifest.
        shipped: its graphs, where this version of ltx2rt brings them.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, TensorEntry]
    trace: Mapping[str, int]
    layers: tuple[Mapping[str, TensorEntry], ...] = ()
    weight_binding: Literal["initializer", "input", "layer"] = "initializer"
    options: Mapping[str, Any] = field(default_factory=dict)
    shipped: Shipped | None = None

    @property
    def network(self) -> nn.Module:
        """The module of a component that was made from it.

        Raises:
            InternalError: the component came with its graphs.
        """
        if self.module is None:
            raise InternalError(f"{self.name} came with its graphs: nobody made its module")
        return self.module


def match_shapes(
    shapes: Mapping[str, tuple[int, ...]], tensors: TensorIndex, where: str, prefix: str = ""
) -> dict[str, TensorEntry]:
    """Find weights of these names and shapes in `tensors`, under `prefix`; unknown tensors are
    ignored.

    Raises:
        CheckpointError: tensors are missing or have another shape; all are listed (the first ten by
            name).
    """
    found: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for name, shape in shapes.items():
        entry = tensors.get(prefix + name)
        if entry is None:
            problems.append(f"{prefix + name} is missing")
        elif entry.shape != shape:
            problems.append(
                f"{prefix + name} has shape {list(entry.shape)}, expected {list(shape)}"
            )
        else:
            found[name] = entry
    if problems:
        shown = shortened(problems)
        raise CheckpointError(f"{where} does not fit this model", shown)
    return found


def below(tensors: TensorIndex, root: str) -> dict[str, TensorEntry]:
    """The tensors whose names start with `root`, without it."""
    return {name[len(root) :]: e for name, e in tensors.items() if name.startswith(root)}


def load_weights(
    entries: Mapping[str, TensorEntry], transposed: frozenset[str]
) -> dict[str, Array]:
    """Read weights as float32; those in `transposed` are laid out `[in, out]`."""
    files = MappedFiles()
    loaded = {name: files.load(entry, "float32") for name, entry in entries.items()}
    return {n: transposed_copy(a) if n in transposed else a for n, a in loaded.items()}
