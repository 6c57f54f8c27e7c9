"""Progress: how long the rest takes, and how the command line shows it."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from typing import Any

import numpy as np
import pytest

from ltx2rt import progress as module
from ltx2rt.bundle import host_plan
from ltx2rt.cli.progress import ProgressPrinter, hushed
from ltx2rt.cli.run_options import Form
from ltx2rt.cli.streams import PlainStream
from ltx2rt.components.denoisers import Guidance, step_costs
from ltx2rt.progress import Job, Progress
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule
from tests.unit.test_memory import bundle_of, component


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rest_of(monkeypatch: pytest.MonkeyPatch, seconds: list[float], **costs: Any) -> list[Any]:
    """The estimates of a stage of three steps that end at these seconds."""
    clock = iter([0.0, *seconds])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    found: list[Any] = []
    job = Job(lambda report: found.append(report.eta_s))
    for step in range(len(seconds) + 1):
        job.report("stage_1", step, 3, **costs if step == 0 else {})
    return found


def test_the_rest_is_estimated_without_the_step_that_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rest_of(monkeypatch, [9.0, 10.0, 11.0]) == [None, 18.0, 1.0, 0.0]


def test_steps_count_by_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rest_of(monkeypatch, [2.0, 3.0, 6.0], costs=[2, 1, 3])
    assert found == [None, 4.0, 3.0, 0.0]
    assert rest_of(monkeypatch, [2.0, 2.0, 4.0], costs=[1, 0, 1]) == [None, 2.0, 2.0, 0.0]


def test_what_a_step_costs_is_its_passes() -> None:
    sigmas = np.array([1.0, 0.5, 0.25, 0.0], np.float32)
    guided = GuiderSchedule(bins={0.4: GuiderParams(), 1.0: GuiderParams(cfg_scale=3.0)})
    skipping = GuiderSchedule(bins={1.0: GuiderParams(cfg_scale=3.0, skip_step=1)})
    assert step_costs(None, ["video"], sigmas) == [1, 1, 1]
    assert step_costs(None, ["video"], sigmas, midpoints=True) == [2, 2, 2]
    assert step_costs(Guidance(video=guided, audio=guided), ["video", "audio"], sigmas) == [2, 2, 1]
    assert step_costs(Guidance(video=skipping, audio=skipping), ["video"], sigmas) == [2, 0, 2]
    both = Guidance(video=guided, audio=guided)
    assert step_costs(both, ["video"], sigmas, midpoints=True) == [4, 3, 2]


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, form: Form | None = None) -> str:
    monkeypatch.setattr("sys.stderr", PlainStream(stream))
    printer = ProgressPrinter(form=form)
    printer(Progress("decode video", 0, 1, 0.0, None))
    printer(Progress("decode video", 4, 8, 2.0, 62.0))
    printer(Progress("decode video", 8, 8, 4.0, 0.0, "all tiles"))
    return stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltx2rt.cli.progress.BAR_S", 0)
    drawn = shown(monkeypatch, Terminal())
    frames = [frame.strip() for frame in drawn.split("\r") if frame.strip()]
    half = r"decode video:  50%\|.{24}\| 4/8 \[\d\d:\d\d, 01:02 left\]$"
    whole = r"decode video: 100%\|.{24}\| 8/8 \[\d\d:\d\d, all tiles\]$"
    assert [bool(re.match(half, frame)) for frame in frames].count(True) == 1
    assert re.match(whole, frames[-1])
    assert drawn.endswith("\n")
    assert "\\u" not in drawn  # nothing of it was escaped


def test_a_log_gets_lines_and_a_program_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO()).splitlines() == [
        "decode video: 0/1  0.0 s", "decode video: 8/8  4.0 s  all tiles"
    ]  # fmt: skip
    assert shown(monkeypatch, Terminal(), "lines").count("\n") == 2
    reports = [json.loads(line) for line in shown(monkeypatch, Terminal(), "json").splitlines()]
    assert reports[1] == {
        "event": "progress", "stage": "decode video", "step": 4, "total": 8, "elapsed_s": 2.0,
        "eta_s": 62.0, "detail": "",
    }  # fmt: skip


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_leaves_errors_alone_on_stderr(
    quiet: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ProgressPrinter(quiet=True, form="json")(Progress("stage_1", 8, 8, 4.0, None))
    with hushed(quiet), warnings.catch_warnings(record=True) as found:
        warnings.warn("layers are read at every use", stacklevel=1)
        logging.getLogger("ltx2rt.pipelines").warning("a part is left out")
    assert capsys.readouterr().err == ""
    assert (bool(found), bool(caplog.records)) == (not quiet, not quiet)


def test_a_build_compares_its_bundle_with_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = bundle_of(transformer_block=component(100, 100, 100, 100))
    assert manifest.runs_on_cpu
    for memory, said in ((1000, "2 stay, the others are read"), (10, "cannot run the bundle: one")):
        monkeypatch.setattr(host_plan, "machine_bytes", lambda memory=memory: 2 * memory)
        with pytest.warns(UserWarning, match=said):
            host_plan.warn_of_memory(manifest)
    monkeypatch.setattr(host_plan, "machine_bytes", lambda: 1 << 30)
    host_plan.warn_of_memory(manifest)


def test_steps_may_be_as_many_as_bytes() -> None:
    reports: list[Progress] = []
    job = Job(on_progress=reports.append)
    for done in (0, 10**12, 2 * 10**12):
        job.report("fetch (bytes)", done, 4 * 10**12)
    assert reports[0].eta_s is None
    last = reports[2]
    assert last.eta_s is not None
    assert 0 <= last.eta_s <= 2 * last.elapsed_s
