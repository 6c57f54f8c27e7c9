"""Engines that hold the weights of one layer each, laid out as the runtime's kernels want them; its
8-bit arithmetic needs that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ltx2rt.backends.host_heap import give_back
from ltx2rt.backends.stack import Part, Weights
from ltx2rt.engine import Array, Engine, EngineBase, EngineSpec
from ltx2rt.errors import InternalError
from ltx2rt.trace import WEIGHTS, span


class LayerEngines(EngineBase):
    """Stands for the engines of all layers of a block; runs none of them itself.

    Args:
        spec: their boundary.
        open_engine: one of them, from its weights, of which it keeps a copy.
    """

    def __init__(self, spec: EngineSpec, open_engine: Callable[[Weights], Engine]) -> None:
        self._spec = spec
        self._open = open_engine

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """None of them: they differ by layer."""
        raise InternalError(f"{self._spec.component} runs with the weights of a layer inside")

    def holding(self, weights: Weights) -> Engine:
        """The engine of a layer."""
        return self._open(weights)


class HeldLayers:
    """The engines of layers that are open now: one a layer, since each holds the layer's weights.
    A layer that is asked for with masks and then without is made anew.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[LayerEngines, Engine]] = {}

    def get(self, index: int, part: Part[Engine], engines: LayerEngines) -> Engine:
        """The engine of layer number `index`, one of `engines`."""
        of, engine = self._held.get(index, (None, None))
        if engine is None or of is not engines:
            self.drop(index)
            with span(WEIGHTS, f"layer {index + 1}"):
                engine = engines.holding(part.load())
                give_back()
            self._held[index] = engines, engine
        return engine

    def drop(self, index: int) -> None:
        """Let go of a layer, if it is open."""
        if (held := self._held.pop(index, None)) is not None:
            held[1].close()

    def close(self) -> None:
        """Let go of all."""
        for index in tuple(self._held):
            self.drop(index)
