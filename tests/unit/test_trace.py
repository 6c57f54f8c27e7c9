"""Traces: spans, totals and the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltx2rt import trace as tracing
from ltx2rt.progress import Job
from ltx2rt.trace import COMPUTE, ENGINES, STAGES, STEPS, UPLOAD, Span, Trace, covered, span


def test_overlapping_work_counts_once() -> None:
    within = Span(STAGES, "s", 0.0, 10.0)
    work = [
        Span(COMPUTE, "a", -1.0, 2.0),
        Span(UPLOAD, "b", 1.0, 3.0),
        Span(COMPUTE, "c", 1.5, 2.5),
        Span(COMPUTE, "d", 9.0, 12.0),
    ]
    assert covered(work, within) == pytest.approx(4.0)


def test_totals_name_what_nothing_explains() -> None:
    trace = Trace()
    trace.add(STAGES, "stage_1", 0.0, 10.0)
    trace.add(COMPUTE, "block", 1.0, 5.0)
    trace.add(UPLOAD, "layer 1", 4.0, 6.0)
    trace.add(ENGINES, "elsewhere", 20.0, 21.0)
    (row,) = trace.totals()
    assert row == {
        "stage": "stage_1",
        "total_s": pytest.approx(10.0),
        f"{COMPUTE}_s": pytest.approx(4.0),
        f"{UPLOAD}_s": pytest.approx(2.0),
        "residual_s": pytest.approx(5.0),
    }


def test_reports_of_a_job_are_stages_and_steps() -> None:
    with Trace() as trace:
        job = Job()
        for stage, steps in (("stage_1", 2), ("decode", 1)):
            for done in range(steps + 1):
                job.report(stage, done, steps)
    assert [(s.track, s.name) for s in trace.spans] == [
        (STEPS, "stage_1 1/2"),
        (STEPS, "stage_1 2/2"),
        (STAGES, "stage_1"),
        (STEPS, "decode 1/1"),
        (STAGES, "decode"),
    ]
    Job().report("later", 1, 1)  # no trace is open
    assert len(trace.spans) == 5


def test_the_file_is_a_chrome_trace(tmp_path: Path) -> None:
    with Trace() as trace:
        with span(ENGINES, "head"):
            pass
        with pytest.raises(KeyError), span(ENGINES, "fails"):
            raise KeyError
    trace.write(tmp_path / "t.json")
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]
    document = json.loads((tmp_path / "t.json").read_text())
    names = {e["tid"]: e["args"]["name"] for e in document["traceEvents"] if e["ph"] == "M"}
    found = [(names[e["tid"]], e["name"]) for e in document["traceEvents"] if e["ph"] == "X"]
    assert found == [(ENGINES, "head"), (ENGINES, "fails")]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in document["traceEvents"] if e["ph"] == "X")


def test_ranges_of_nvtx(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Nvtx:
        def push_range(self, name: str) -> None:
            calls.append(name)

        def pop_range(self) -> None:
            calls.append("pop")

    monkeypatch.setattr(tracing, "_nvtx", Nvtx)
    with span(ENGINES, "head"):
        calls.append("work")
    assert calls == [f"{ENGINES}: head", "work", "pop"]
