"""`ltx2_text_encode`: prompts to text contexts, several requests at once, and to the request of the
clip that they are for.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT
from ltx2rt.errors import EngineError, Ltx2rtError, OptionError
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from ltx2rt.plain_data import unknown_name
from ltx2rt.service.contexts import Encoder
from ltx2rt.service.limits import Limits
from ltx2rt.service.requests import DEFAULT_PIPELINE
from ltx2rt.service.triton.answers import MODE, PREVIEW, one_text, triton_error
from ltx2rt.service.triton.settings import ModelSettings
from ltx2rt.service.triton.state import InstanceState


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: the prompts of a clip, and the JSON that `ltx2_generate` makes it from."""

    prompts: tuple[str, ...]
    request: str


class TextModel:
    """One instance.

    Args:
        backend: `triton_python_backend_utils`.
        settings: of this instance.
    """

    def __init__(self, backend: Any, settings: ModelSettings) -> None:
        self._backend = backend
        self._encode = Encoder(settings.bundle, settings.runtime)
        self._state = InstanceState(settings.model, settings.instance)
        self._is_broken = False
        if settings.warm_up:
            self._encode(["warm up"])
        self._state.write("ready")

    def close(self) -> None:
        """Triton unloads it."""
        self._encode.close()
        self._state.remove()

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response to each; their different prompts are encoded together."""
        read = [self._read(request) for request in requests]
        prompts = [p for asked in read if isinstance(asked, Asked) for p in asked.prompts]
        try:
            if self._is_broken:
                raise EngineError("the device failed: unload this model and load it again.")
            contexts = self._encode(prompts) if prompts else {}
        except (Ltx2rtError, MemoryError) as error:
            self._is_broken = isinstance(error, EngineError)
            self._state.write("broken" if self._is_broken else "ready")
            return [
                self._failed(asked if isinstance(asked, Exception) else error) for asked in read
            ]
        return [
            self._failed(asked) if isinstance(asked, Exception) else self._answer(asked, contexts)
            for asked in read
        ]

    def _read(self, request: Any) -> Asked | Ltx2rtError:
        try:
            prompt = one_text(self._backend, request, "PROMPT")
            return asked_of(prompt, json.loads(request.parameters() or "{}"))
        except Ltx2rtError as error:
            return error

    def _answer(self, asked: Asked, contexts: dict[str, TextContext]) -> Any:
        with tempfile.TemporaryDirectory(prefix="ltx2rt-") as folder:
            path = Path(folder) / "contexts.safetensors"
            self._encode.write(path, asked.prompts, contexts)
            data = np.fromfile(path, np.uint8)
        text = np.array([[asked.request.encode()]], dtype=np.object_)
        tensors = [
            self._backend.Tensor("REQUEST", text),
            self._backend.Tensor("CONTEXT", data[None]),
        ]
        return self._backend.InferenceResponse(output_tensors=tensors)

    def _failed(self, error: BaseException) -> Any:
        told = triton_error(self._backend, error)
        return self._backend.InferenceResponse(output_tensors=[], error=told)


def asked_of(prompt: str, parameters: dict[str, Any]) -> Asked:
    """What a clip needs of the text encoder.

    Args:
        prompt: its prompt.
        parameters: `pipeline`, `negative_prompt`, and fields of a request's `config`, which
            `ltx2_generate` checks.

    Raises:
        OptionError: there is no such pipeline, or a prompt cannot be encoded.
    """
    given = {k: v for k, v in parameters.items() if k not in (MODE, PREVIEW)}
    name = given.pop("pipeline", DEFAULT_PIPELINE)
    if name not in PIPELINES:
        raise OptionError(f"pipeline {unknown_name(str(name), PIPELINES)}")
    negative = given.pop("negative_prompt", None)
    request: dict[str, Any] = {"pipeline": name, "config": {**given, "prompt": prompt}}
    prompts = [prompt]
    if negative is not None:
        request["guidance"] = {"negative_prompt": negative}
    if catalog_class(name).guided:
        prompts.append(DEFAULT_NEGATIVE_PROMPT if negative is None else str(negative))
    most = Limits().max_prompt_chars
    if not prompt.strip():
        raise OptionError("PROMPT is empty: say what the clip shows.")
    if (longest := max(map(len, prompts))) > most:
        raise OptionError(f"a prompt has {longest} characters; this server allows {most}.")
    return Asked(tuple(prompts), json.dumps(request, ensure_ascii=False))


class TritonPythonModel:
    """What Triton makes of `model.py`."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Once, when it is loaded."""
        backend = importlib.import_module("triton_python_backend_utils")
        self._model = TextModel(backend, ModelSettings.read(arguments))

    def execute(self, requests: list[Any]) -> list[Any]:
        """For every batch of requests."""
        return self._model.execute(requests)

    def finalize(self) -> None:
        """Once, when it is unloaded."""
        self._model.close()
