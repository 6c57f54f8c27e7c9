"""How ONNX Runtime's sessions are made."""

from __future__ import annotations

from typing import Any

import pytest

from ltx2rt.backends import onnxruntime as backend
from ltx2rt.cli.requests import asked_of
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import EngineSpec
from tests.unit.command_flags import given_by


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that an engine gives its session."""
    made: list[Any] = []

    class Session:
        def __init__(self, graph: bytes, settings: Any, providers: list[str]) -> None:
            made.append(settings)

        def get_inputs(self) -> list[Any]:
            return []

    monkeypatch.setattr(backend.ort, "InferenceSession", Session)

    def settings(options: backend.OrtOptions | None = None, *, copied: bool = False) -> Any:
        backend.OrtEngine(b"", EngineSpec("vocoder", (), ()), {}, options, copied=copied)
        return made[-1]

    return settings


def test_sessions_do_not_plan_which_outputs_share_memory(settings_of: Any) -> None:
    """That plan is quadratic in the number of nodes: a vocoder has thousands."""
    assert settings_of().enable_mem_reuse is False


def test_8_bit_products_are_exact_on_every_cpu(settings_of: Any) -> None:
    """Sums of two saturate in 16 bits on CPUs without VNNI, unless this is asked for."""
    assert settings_of().get_session_config_entry("session.x64quantprecision") == "1"


def test_sessions_of_layers_give_memory_back(settings_of: Any) -> None:
    """An arena each would hold the activations of every layer at once."""
    assert settings_of(copied=True).enable_cpu_mem_arena is False
    assert settings_of(backend.OrtOptions(arena=False)).enable_cpu_mem_arena is False
    assert settings_of().enable_cpu_mem_arena is True


def test_threads_sleep_between_nodes_unless_they_are_told_to_spin(settings_of: Any) -> None:
    def entry(options: backend.OrtOptions | None) -> str:
        name = "session.intra_op.allow_spinning"
        return str(settings_of(options).get_session_config_entry(name))

    assert entry(None) == entry(backend.OrtOptions()) == "0"
    assert entry(backend.OrtOptions(spinning=True)) == "1"
    assert asked_of(given_by("--prompt", "a", "-o", "x.mp4", "--spinning")).runtime == (
        RuntimeConfig(spinning=True)
    )
