"""`ltx2_generate`: a decoupled model of Triton's Python backend that holds the whole runtime.

A request is one JSON text, answered by any number of responses: progress, pieces of a fragmented
mp4, then the result. Triton's own queue does the rest: limits, priorities, timeouts.
"""

from __future__ import annotations

import importlib
import io
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltx2rt.errors import EngineError, Ltx2rtError, OptionError
from ltx2rt.plain_data import parse_json
from ltx2rt.service.events import Event, error_event
from ltx2rt.service.limits import Limits
from ltx2rt.service.maker import Maker, into_stream, kind_of
from ltx2rt.service.requests import Order, read_order
from ltx2rt.service.sources import Sources
from ltx2rt.service.triton.answers import MODE, Answer, Sink
from ltx2rt.service.triton.settings import ModelSettings
from ltx2rt.service.triton.state import InstanceState


class Model:
    """One instance; it makes its warm-up clip, if there is one, before it is ready.

    Args:
        backend: `triton_python_backend_utils`.
        settings: of this instance.
    """

    def __init__(self, backend: Any, settings: ModelSettings) -> None:
        self._backend = backend
        self._allowed = settings.allowed
        self._limits = Limits()
        self._maker = Maker(settings.bundle, settings.runtime)
        self._state = InstanceState(settings.model, settings.instance)
        self._is_broken = False
        if settings.warm_up:
            self._warm_up(parse_json(settings.warm_up))
        self._state.write("ready")

    def _warm_up(self, request: Any) -> None:
        """Load what a clip needs, and have the device prepare what it prepares on a first run."""
        with tempfile.TemporaryDirectory(prefix="ltx2rt-") as folder:
            order = self._order(request, Path(folder))
            write = into_stream(io.BytesIO())
            made = self._maker.make(order, write, lambda _: None, threading.Event())
        self._backend.Logger.log_info(f"warmed up in {made['timings_s']['total']:.1f} s")

    def close(self) -> None:
        """Triton unloads it."""
        self._maker.close()
        self._state.remove()

    def execute(self, requests: list[Any]) -> None:
        """Answer each request, one after another."""
        for request in requests:
            self._answer(request)

    def _answer(self, request: Any) -> None:
        answer = Answer(self._backend, request)
        if self._is_broken:
            return answer.refuse("the device failed: unload this model and load it again.")
        self._state.write("busy")
        try:
            self._make(answer)
        except (Ltx2rtError, MemoryError, OSError) as error:
            self._is_broken = isinstance(error, EngineError)
            told = error_event(error).data
            self._backend.Logger.log_info(f"no clip: {told['kind']}: {told['message']}")
            answer.fail_with(error)
        finally:
            self._state.write("broken" if self._is_broken else "ready")

    def _order(self, request: Any, folder: Path) -> Order:
        sources = Sources(folder=folder, allowed=self._allowed, limits=self._limits)
        order = read_order(request, sources)
        if (kind := kind_of(order)) != "video":
            raise OptionError(f"this model answers with video; {order.pipeline} makes {kind}.")
        return order

    def _make(self, answer: Answer) -> None:
        sink = Sink(answer, answer.parameters.get(MODE, "stream"))
        previews = answer.preview_every()

        def emit(event: Event) -> None:
            if sink.is_told and event.kind in ("progress", "preview"):
                answer.send(event)

        with tempfile.TemporaryDirectory(prefix="ltx2rt-") as name:
            folder, contexts = Path(name), None
            order = self._order(answer.request(), folder)
            every = (previews or order.preview) if sink.is_told else 0
            order = replace(order, preview=every)
            if (data := answer.context()) is not None:
                contexts = folder / "contexts.safetensors"
                contexts.write_bytes(data)
            result = self._maker.make(order, sink.writer, emit, answer.cancel, contexts=contexts)
        answer.send(Event(kind="result", data=result), sink.data, sink.frames)
        answer.end()


class TritonPythonModel:
    """What Triton makes of `model.py`."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Once, when it is loaded."""
        backend = importlib.import_module("triton_python_backend_utils")
        self._model = Model(backend, ModelSettings.read(arguments))

    def execute(self, requests: list[Any]) -> None:
        """For every request; answers go through its sender."""
        self._model.execute(requests)

    def finalize(self) -> None:
        """Once, when it is unloaded."""
        self._model.close()
