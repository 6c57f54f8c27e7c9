"""A repeated component whose engines hold their weights: one engine a layer, behind the face of
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.bundle.load_weights import LAYER
from ltx2rt.engine import Array, EngineBase, EngineSpec, Kept


class LayeredEngine(EngineBase):
    """The engines of all layers, which share the memory of their inputs, outputs and activations.

    Args:
        paths: layer -> engine file.
        spec: the component's boundary.
        rebuild, memory: see `TrtEngine`, which says what is raised too.
    """

    def __init__(
        self,
        paths: Mapping[int, Path],
        spec: EngineSpec,
        rebuild: str,
        memory: DeviceMemory,
    ) -> None:
        self._spec = spec
        self._engines: dict[int, TrtEngine] = {}
        try:
            for index, path in paths.items():
                self._engines[index] = TrtEngine(path, spec, {}, rebuild, memory=memory)
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the layer that `LAYER` names; see `Engine`."""
        return self._engines[int(tensors[LAYER])](tensors)

    def keep(self, tensors: Mapping[str, Array | Kept]) -> dict[str, Kept]:
        """Run that layer and leave the outputs on the device; see `KeepingEngine`."""
        layer = tensors[LAYER]
        assert not isinstance(layer, Kept)
        return self._engines[int(layer)].keep(tensors)

    def place(self, tensors: Mapping[str, Array]) -> dict[str, Kept]:
        """Upload tensors for several calls; see `KeepingEngine`."""
        return next(iter(self._engines.values())).place(tensors)

    def close(self) -> None:
        """Free all engines and their memory; closing again does nothing."""
        while self._engines:
            self._engines.popitem()[1].close()
