"""ONNX Runtime's CUDA provider on the simulated GPU: sessions of its CPU provider, whose runs are
enqueued on the stream that the provider's options name and bind the same addresses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnxruntime as ort
import pytest

from ltx2rt.backends import onnxruntime, onnxruntime_cuda
from ltx2rt.engine import Array
from tests.simulator.driver import SimulatedDriver, running

ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 16: 2, 17: 1}


def use_simulated_cuda(patch: pytest.MonkeyPatch) -> None:
    """Let `onnxruntime_cuda` find the provider, on the simulation that runs."""
    patch.setattr(onnxruntime_cuda, "new_session", _session)
    patch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )


def _session(
    graph: bytes,
    component: str,
    initializers: Mapping[str, Array],
    options: onnxruntime.OrtOptions,
) -> SimulatedSession:
    (name, chosen), (second, _) = options.providers
    assert (name, second) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    on_cpu = replace(options, providers=onnxruntime.OrtOptions().providers)
    session = onnxruntime.new_session(graph, component, initializers, on_cpu)
    return SimulatedSession(session, component, chosen, running())


class SimulatedSession:
    """What the runtime uses of a session."""

    def __init__(
        self, session: Any, component: str, chosen: Mapping[str, str], driver: SimulatedDriver
    ) -> None:
        self._session, self._component, self._driver = session, component, driver
        self._stream = int(chosen.get("user_compute_stream", "0"))
        self._index = int(chosen["device_id"])

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", *self._session.get_providers()]

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def run(self, names: list[str], tensors: Mapping[str, Array]) -> Any:
        return self._session.run(names, tensors)

    def io_binding(self) -> SimulatedBinding:
        return SimulatedBinding(self._index)

    def run_with_iobinding(self, iobinding: SimulatedBinding, run_options: Any = None) -> None:
        key = "disable_synchronize_execution_providers"
        assert run_options.get_run_config_entry(key) == "1"
        inputs, outputs = dict(iobinding.inputs), dict(iobinding.outputs)
        assert inputs.keys() == {i.name for i in self._session.get_inputs()}

        def run() -> None:
            real = self._session.io_binding()
            for given, bind in ((inputs, real.bind_input), (outputs, real.bind_output)):
                for name, (kind, shape, address) in given.items():
                    bytes_there = self._driver.view(address, _bytes(kind, shape), self._index)
                    bind(name, "cpu", 0, kind, shape, bytes_there.ctypes.data)
            self._session.run_with_iobinding(real)

        reads, writes = ([(a, _bytes(k, s)) for k, s, a in g.values()] for g in (inputs, outputs))
        assert self._driver.launch(self._stream, run, self._component, reads, writes) == 0


class SimulatedBinding:
    """What is bound: name -> (element type, shape, address)."""

    def __init__(self, index: int) -> None:
        self._index = index
        self.inputs: dict[str, tuple[int, list[int], int]] = {}
        self.outputs: dict[str, tuple[int, list[int], int]] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: int, shape: list[int],
        buffer_ptr: int,
    ) -> None:  # fmt: skip
        assert (device_type, device_id) == ("cuda", self._index)
        self.inputs[name] = element_type, shape, buffer_ptr

    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: int, shape: list[int],
        buffer_ptr: int,
    ) -> None:  # fmt: skip
        assert (device_type, device_id) == ("cuda", self._index)
        self.outputs[name] = element_type, shape, buffer_ptr


def _bytes(element_type: int, shape: list[int]) -> int:
    return math.prod(shape) * ITEM_BYTES[element_type]
