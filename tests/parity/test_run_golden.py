"""The golden runner itself: its lines, its selection, and that a wrong result fails."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.parity import golden
from tests.parity.golden import (
    Case,
    Runner,
    case_name,
    component_files,
    golden_root,
    load_case,
    run_case,
)
from tests.parity.run_golden import main

KEYS = {"case", "backend", "passed", "skipped", "max_abs", "rel_rms", "tolerance_class", "detail"}


def root() -> str:
    found = golden_root()
    assert found is not None
    return str(found)


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([root(), "--only", "tokenizer_gemma3", "--backend", "torch", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1
    assert set(lines[0]) == KEYS
    assert lines[0]["passed"] is True
    assert lines[0]["skipped"] is None


def test_nothing_selected_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([root(), "--only", "no-such-case"])
    assert stop.value.code == 2
    assert "no-such-case" in capsys.readouterr().err


def test_a_directory_without_cases_is_an_error(tmp_path: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2


@pytest.mark.parametrize("change", ["value", "shape", "nan", "missing"])
def test_a_wrong_result_fails(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    path = next(p for p in component_files(golden_root()) if case_name(p) == "timestep_embedding")
    case = load_case(path)
    right = dict(case.outputs)
    wrong = {k: v.copy() for k, v in right.items()}
    name = next(iter(wrong))
    if change == "value":
        wrong[name].flat[-1] += 1.0
    elif change == "nan":
        wrong[name].flat[0] = np.nan
    elif change == "shape":
        wrong[name] = wrong[name][:-1]
    else:
        del wrong[name]

    def handler(_case: Case, _run: Runner) -> dict[str, np.ndarray]:
        return wrong

    monkeypatch.setattr(golden, "load_handlers", lambda: {case.component: handler})
    runner = Runner(golden_root(), "torch")
    assert not run_case(case, runner).passed
    monkeypatch.setattr(golden, "load_handlers", lambda: {case.component: lambda *_: right})
    assert run_case(case, runner).passed


def test_unknown_component_is_skipped_with_a_reason() -> None:
    path = component_files(golden_root())[0]
    case = dataclasses.replace(load_case(path), component="teapot")
    result = run_case(case, Runner(golden_root(), "torch"))
    assert result.skipped == "component teapot is not supported yet"
