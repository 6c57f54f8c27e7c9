"""How ONNX Runtime's sessions are made."""

from __future__ import annotations

from typing import Any

import pytest

from ltx2rt.backends import onnxruntime as backend
from ltx2rt.engine import EngineSpec


def test_sessions_do_not_plan_which_outputs_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """That plan is quadratic in the number of nodes: a vocoder has thousands."""
    made: list[Any] = []

    class Session:
        def __init__(self, graph: bytes, settings: Any, providers: list[str]) -> None:
            made.append(settings)

        def get_inputs(self) -> list[Any]:
            return []

    monkeypatch.setattr(backend.ort, "InferenceSession", Session)
    backend.OrtEngine(b"", EngineSpec("vocoder", (), ()), {})
    assert [settings.enable_mem_reuse for settings in made] == [False]
