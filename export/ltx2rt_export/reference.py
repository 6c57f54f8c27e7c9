"""The PyTorch reference behind the same `Engine` protocol, made from components directly.

Used by golden runs, `ltx2rt verify` and benchmarks; never by the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from ltx2rt.backends.host_stack import HostStack
from ltx2rt.components.stack_plans import stack_plan
from ltx2rt.engine import Array, Engine, EngineBase, EngineSpec, check_inputs
from ltx2rt.names import StackNames
from ltx2rt_export.component import Component, load_weights
from ltx2rt_export.modules.meta import load_module


def engine_spec(component: Component) -> EngineSpec:
    """The boundary of a component, weights bound per call left out."""
    return EngineSpec(component.name, component.inputs, component.outputs)


class TorchEngine(EngineBase):
    """Runs the component's own module eagerly on the CPU, in `dtype`.

    Outputs are float32 whatever `dtype` is, and so are the inputs that the option `float32_inputs`
    names. A component whose weights are inputs takes them, as files hold them (`[out, in]`), among
    the tensors of each call.
    """

    def __init__(self, component: Component, dtype: torch.dtype = torch.float32) -> None:
        self._spec = engine_spec(component)
        self._dtype = dtype
        self._per_call = component.weight_binding == "input"
        self.module = component.network if self._per_call else load_module(component, dtype)
        self._weights = tuple(component.network.state_dict())
        self._exact = frozenset(component.options.get("float32_inputs", ()))

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Engine`."""
        check_inputs(self._spec, tensors)
        inputs = {
            s.name: self._tensor(tensors[s.name], exact=s.name in self._exact)
            for s in self._spec.inputs
        }
        if self._per_call:
            weights = {name: self._tensor(tensors[name]) for name in self._weights}
            outputs = torch.func.functional_call(self.module, weights, kwargs=inputs)
        else:
            outputs = self.module(**inputs)
        names = [s.name for s in self._spec.outputs]
        return {
            n: (o.float() if o.is_floating_point() else o).numpy()
            for n, o in zip(names, outputs, strict=True)
        }

    def _tensor(self, array: Array, *, exact: bool = False) -> torch.Tensor:
        array = np.ascontiguousarray(array)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self._dtype) if tensor.is_floating_point() and not exact else tensor


def component_stack(
    names: StackNames,
    components: Iterable[Component],
    engine: Callable[[Component], Engine],
    layers: Callable[[Component], Sequence[Mapping[str, Array]]] | None = None,
) -> HostStack:
    """A stack over components.

    Args:
        components: head, blocks and tail, in any order.
        engine: makes the engine of a component.
        layers: weights of every layer as that engine takes them; default: as files hold them.
    """
    found = {c.name: c for c in components}
    served = {n: range(len(found[n].layers)) for n in names.blocks if n in found}
    plan = stack_plan(names, lambda name: found[name].options, served)
    layers = layers or official_layers
    engines = {name: engine(found[name]) for name in plan.components}
    weights = {n: layers(found[n]) for n in engines if found[n].weight_binding == "input"}
    return HostStack(
        plan.parts(lambda n, _: engines[n], lambda n, i: weights[n][i] if n in weights else {})
    )


def official_layers(component: Component) -> list[dict[str, Array]]:
    """Weights of every layer as `TorchEngine` takes them."""
    return [load_weights(layer, frozenset()) for layer in component.layers]
