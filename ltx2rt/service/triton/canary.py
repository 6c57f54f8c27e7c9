"""`ltx2_health`: answers whether the generating instances of this server are alive and well."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np

from ltx2rt.service.triton.state import health


class TritonPythonModel:
    """What Triton makes of `model.py`."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Once, when it is loaded."""
        self._backend: Any = importlib.import_module("triton_python_backend_utils")

    def execute(self, requests: list[Any]) -> list[Any]:
        """`HEALTHY` and `DETAILS` for each; an error where it is not healthy."""
        return [self._answer() for _ in requests]

    def _answer(self) -> Any:
        backend, found = self._backend, health()
        text = json.dumps(found)
        if not found["healthy"]:
            error = backend.TritonError(text, backend.TritonError.UNAVAILABLE)
            return backend.InferenceResponse(output_tensors=[], error=error)
        tensors = [
            backend.Tensor("HEALTHY", np.array([True])),
            backend.Tensor("DETAILS", np.array([text.encode()], dtype=np.object_)),
        ]
        return backend.InferenceResponse(output_tensors=tensors)
