"""Engines of a simulated bundle run on host arrays: the slow, obvious twin of the device code.

Both run the same programs on the same bits, so a pipeline through the device must give exactly what
it gives here, in every precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltx2rt.backends.host_stack import HostStack
from ltx2rt.bundle import loader
from ltx2rt.engine import NUMPY_DTYPES, Array, EngineBase, EngineSpec, check_inputs
from tests.simulator.engine_program import Boundary, Program


class HostEngine(EngineBase):
    """Takes the arguments of `TrtEngine`; only the engine file and the weights matter."""

    def __init__(
        self, path: Path, spec: EngineSpec, weights: Mapping[str, Array], *_: Any, **__: Any
    ) -> None:
        self._spec = spec
        self._program = Program.from_bytes(path.read_bytes())
        self._weights = dict(weights)

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Engine`."""
        check_inputs(self._spec, tensors)
        given = self._weights | dict(tensors)
        bits = {t.name: _as_taken(given[t.name].view(t.carrier), t) for t in self._program.inputs}
        dtypes = {t.name: NUMPY_DTYPES[t.dtype] for t in self._spec.outputs}
        return {n: a.view(dtypes[n]) for n, a in self._program.run(bits).items()}


def use_host_engines(patch: pytest.MonkeyPatch) -> None:
    """From here on bundles load the twin, and a host stack in place of the device's."""

    def stack(parts: Any, memory: object, *, keep: bool, **_: object) -> HostStack:
        return HostStack(parts, keep=keep)

    patch.setattr(loader, "TrtEngine", HostEngine)
    patch.setattr(loader, "DeviceStack", stack)
    memory = SimpleNamespace(opened=ExitStack, close=lambda: None)
    card = SimpleNamespace(
        memory=memory,
        memory_of=lambda name: memory,
        stage_of=lambda name: None,
        enter=lambda name: None,
        close=lambda: None,
        plan=None,
        keep_text=False,
        places=lambda names: (0, 0),
        ring=lambda names: 0,
    )
    patch.setattr(loader.Loader, "_card_of", lambda *_: card)


def _as_taken(array: Any, tensor: Boundary) -> Any:
    """A weight in the shape of the engine, which only its bytes have to fit; biases are wider."""
    fixed = [d for d in tensor.shape if isinstance(d, int)]
    same = len(fixed) == len(tensor.shape) and tensor.dtype != "int4"
    return array.reshape(fixed) if same else array
