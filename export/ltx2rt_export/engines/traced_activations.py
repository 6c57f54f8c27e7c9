"""The memory of a component's activations from its module, which runs on fake tensors of the real
sizes: the storages that are alive at once are added up. See `activations`.

The logits of attentions are left out, since engines fuse them. Engines also fuse chains of small
operators and reuse memory better than eager PyTorch, so the estimate is on the high side.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltx2rt.engine import TensorSpec
from ltx2rt_export.component import Component
from ltx2rt_export.onnx import TORCH_DTYPES


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records when storages appear and go; weights and attention logits are left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[tuple[int, int]] = []  # (storage, +bytes or -bytes)
        self.left_out: set[int] = set()
        self._numbers: weakref.WeakKeyDictionary[torch.UntypedStorage, int]
        self._numbers = weakref.WeakKeyDictionary()
        self._elements: dict[int, int] = {}
        self._parents: dict[int, set[int]] = {}

    def number(self, tensor: torch.Tensor, parents: set[int]) -> int:
        """The storage's number; new ones are recorded."""
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            number = len(self._elements)
            size = tensor.numel() * tensor.element_size()
            self._numbers[storage] = number
            self._elements[number] = tensor.numel()
            self._parents[number] = parents
            self.events.append((number, size))
            weakref.finalize(storage, self.events.append, (number, -size))
        return self._numbers[storage]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        parents = {self._numbers[s] for t in read if (s := t.untyped_storage()) in self._numbers}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                number = self.number(tensor, parents)
                if func is torch.ops.aten._softmax.default:
                    self._mark(number, self._elements[number])
        return out

    def _mark(self, number: int, elements: int) -> None:
        """Mark logits: what a softmax makes, and what it was made from at the same size."""
        if number not in self.left_out and self._elements[number] == elements:
            self.left_out.add(number)
            for parent in self._parents[number]:
                self._mark(parent, elements)

    def peak(self) -> int:
        """Most bytes alive at once."""
        alive = most = 0
        for number, size in self.events:
            if number not in self.left_out:
                alive += size
                most = max(most, alive)
        return most


def traced_bytes(component: Component, sizes: Mapping[str, int], dtype: str) -> int:
    """Peak memory of one run, inputs and outputs included, weights left out.

    Args:
        sizes: size of every symbol of the inputs; a dimension `1|X` counts as 1.
        dtype: of what is float32 in the component's boundary.
    """
    recorder = _Recorder()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        weights = {n: torch.empty(w.shape) for n, w in component.network.state_dict().items()}
        inputs = {
            spec.name: torch.empty(_shape(spec, sizes), dtype=TORCH_DTYPES[spec.dtype])
            for spec in component.inputs
        }
        with recorder:
            recorder.left_out |= {recorder.number(w, set()) for w in weights.values()}
            for tensor in inputs.values():
                recorder.number(tensor, set())
            torch.func.functional_call(component.network, weights, kwargs=inputs)
    share = TORCH_DTYPES[dtype].itemsize / torch.float32.itemsize
    return int(recorder.peak() * share)


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> list[int]:
    return [d if isinstance(d, int) else 1 if d.startswith("1|") else sizes[d] for d in spec.shape]
