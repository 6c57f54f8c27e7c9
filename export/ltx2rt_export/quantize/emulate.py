"""A graph's arithmetic in PyTorch, on the CPU: the oracle of every precision, also of those that
ONNX Runtime cannot run there (bfloat16, NVFP4).

Linears are replaced by the precision's own emulation (`Rewrite.linear`); everything else is the
module itself in the graph's dtype.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltx2rt.engine import Array, EngineBase, EngineSpec, check_inputs
from ltx2rt_export.component import Component
from ltx2rt_export.graph import ExportedGraph, with_dtype
from ltx2rt_export.onnx import TORCH_DTYPES
from ltx2rt_export.quantize.linears import weight_inputs
from ltx2rt_export.quantize.rewrites import REWRITES, EmulatedLinear
from ltx2rt_export.reference import TorchEngine


class _Linear(nn.Module):
    """Stands in for `nn.Linear`; its tensors have the names of the graph's weight inputs."""

    def __init__(self, compute: EmulatedLinear, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._compute, self._names = compute, tuple(parts)
        for name, value in parts.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        parts = {n: self.get_buffer(n) for n in self._names}
        bias = parts.pop("bias", None)
        return self._compute(x, parts, bias)


class EmulatedEngine(EngineBase):
    """Runs a graph's module with its precision emulated.

    Takes and gives exactly what the graph does: dtypes as in its spec (bfloat16 as bit patterns),
    weights laid out as it binds them.

    Args:
        graph: exported in a precision.
        precision: that it was rewritten for; one without a rewrite changes nothing.
        weights: by name, for a graph whose weights are initializers.
    """

    def __init__(
        self, graph: ExportedGraph, precision: str, weights: Mapping[str, Array] | None = None
    ) -> None:
        component = graph.component
        self._spec = EngineSpec(component.name, component.inputs, component.outputs)
        self._dtypes = {n: d for n, (d, _) in weight_inputs(graph).items()}
        self._float = graph.dtype
        self._transposed = graph.transposed
        inside = with_dtype(component, graph.dtype).inputs
        self._inside = {s.name: TORCH_DTYPES[s.dtype] for s in inside}
        self._module = copy.deepcopy(component.network)
        self._quantized: frozenset[str] = frozenset()
        if rewrite := REWRITES.get(precision):
            self._quantized = frozenset(
                n.removesuffix(".weight_scale")
                for n in graph.weights
                if n.endswith(".weight_scale")
            )
            for name in self._quantized:
                parts = {
                    n.removeprefix(f"{name}."): torch.empty(0)
                    for n in graph.weights
                    if n.startswith(f"{name}.")
                }
                parent, _, child = name.rpartition(".")
                setattr(self._module.get_submodule(parent), child, _Linear(rewrite.linear, parts))
        self._names = graph.weights
        self._fixed = {n: self._weight(n, a) for n, a in (weights or {}).items()}

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Engine`."""
        check_inputs(self._spec, tensors)
        inputs = {
            s.name: to_torch(tensors[s.name], s.dtype).to(self._inside[s.name])
            for s in self._spec.inputs
        }
        state = self._fixed or {n: self._weight(n, tensors[n]) for n in self._names}
        outputs = torch.func.functional_call(self._module, state, kwargs=inputs)
        return {
            s.name: to_numpy(o.to(TORCH_DTYPES[s.dtype]))
            for s, o in zip(self._spec.outputs, outputs, strict=True)
        }

    def _weight(self, name: str, array: Array) -> Tensor:
        tensor = to_torch(array, self._dtypes.get(name, self._float))
        module = name.rpartition(".")[0]
        if name in self._transposed and module not in self._quantized:
            return tensor.T.to(TORCH_DTYPES[self._float])  # held in 16 bits, used in 32
        return tensor


def activation_maxima(
    component: Component, calls: Iterable[Mapping[str, Array]]
) -> dict[str, float]:
    """The largest magnitude that each linear of a component reads, over float32 calls: what static
    activation scales are made from (`max / 448` for FP8; spec/quantization.md §2).
    """
    maxima: dict[str, float] = {}
    module = copy.deepcopy(component.network)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            maxima[name] = max(maxima.get(name, 0.0), float(args[0].abs().max()))

        return hook

    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(watch(name))
    engine = TorchEngine(dataclasses.replace(component, module=module))
    for feeds in calls:
        engine(feeds)
    return maxima


def to_torch(array: Array, dtype: str) -> Tensor:
    """A tensor of an engine's array; 4-bit types stay packed bytes."""
    array = np.ascontiguousarray(array)
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    views: dict[str, Any] = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}
    return tensor.view(views[dtype]) if dtype in views else tensor


def to_numpy(tensor: Tensor) -> Array:
    """The inverse of `to_torch`."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy()
    return tensor.contiguous().numpy()
