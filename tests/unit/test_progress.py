"""Progress: how long the rest takes, and how the command line shows it."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from pathlib import Path
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
from ltx2rt.results.clip_times import (
    MAX_CLIPS,
    ClipTimes,
    expected_seconds,
    read_times,
    remember,
    times_file,
)
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


EXPECTED = {"prompt": 10.0, "stage_1": 40.0, "stage_2": 60.0, "decode video": 90.0}


def clip_etas(monkeypatch: pytest.MonkeyPatch, job: Job, *reports: Any) -> list[float | None]:
    """Estimates of the whole clip, of reports (second, stage, step, total)."""
    found: list[float | None] = []
    job.on_progress = lambda report: found.append(report.clip_eta_s)
    for second, *report in reports:
        monkeypatch.setattr(module.time, "perf_counter", lambda second=second: second)
        job.report(*report)
    return found


def test_the_rest_of_a_clip_is_what_its_stages_took_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job()
    monkeypatch.setattr(module.time, "perf_counter", lambda: -1.0)
    job.expect(EXPECTED)
    found = clip_etas(
        monkeypatch, job,
        (0, "prompt", 0, 1), (5, "prompt", 1, 1),  # kept by chance: nothing of the pace
        (5, "stage_1", 0, 4), (10, "stage_1", 1, 4), (14, "stage_1", 2, 4), (21, "stage_1", 4, 4),
        (21, "stage_2", 0, 1), (51, "stage_2", 1, 1),
        (60, "decode video", 0, 1), (90, "decode video", 9, 9),  # 9 s were needed to load
    )  # fmt: skip
    assert found[:4] == [199.0, 190.0, 190.0, 185.0]
    assert found[4] == 8 + 150.0  # two steps are timed: 4 s each, and not what remains of 40 s
    assert found[5] == pytest.approx(150 * 16 / 40)
    assert found[7] == pytest.approx(90 * 46 / 100)
    assert found[8] == pytest.approx(90 * 46 / 100 - 9)
    assert found[-1] == 0
    assert job.stage_seconds() == {
        "prompt": 6, "stage_1": 16, "stage_2": 30, "decode video": 39
    }  # fmt: skip


def test_nothing_is_promised_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clip_etas(monkeypatch, Job(), (0, "prompt", 0, 1), (5, "prompt", 1, 1)) == [None, None]
    resumed = Job()
    resumed.expect(EXPECTED)
    # a stage that was taken over says nothing of the pace, and the run nothing of what clips take
    assert clip_etas(monkeypatch, resumed, (0, "prompt", 0, 1), (5, "prompt", 1, 1))[1] == 190.0
    assert clip_etas(monkeypatch, resumed, (5, "stage_1", 1, 1)) == [150.0]
    assert resumed.stage_seconds() is None
    several = Job()
    several.expect(EXPECTED)
    several.expect(EXPECTED)
    assert clip_etas(monkeypatch, several, (0, "prompt", 0, 1)) == [None]
    assert several.stage_seconds() is None


def test_what_clips_took_is_kept_by_kind_and_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "file"))
    assert times_file("b") is None  # no cache is no reason to make no clip
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path))
    path = times_file("b")
    assert path == tmp_path / "times" / "b.json"
    assert expected_seconds(path, "first distilled", (9, 64, 64)) == {}
    for frames, seconds in ((9, 1.0), (9, 2.0), (97, 40.0)):
        stages = {"prompt": 5.0, "stage_1": seconds}
        remember(path, ClipTimes(kind="distilled", shape=(frames, 64, 64), seconds=stages))
    assert [c.seconds["stage_1"] for c in read_times(path)] == [2.0, 40.0]  # the latest of a shape
    assert expected_seconds(path, "distilled", (9, 64, 64)) == {"prompt": 5.0, "stage_1": 2.0}
    larger = expected_seconds(path, "distilled", (97, 128, 64))  # twice the cells of the nearest
    assert larger == {"prompt": 5.0, "stage_1": 80.0}
    assert expected_seconds(path, "one-stage", (9, 64, 64)) == {}
    for number in range(100):
        clip = ClipTimes(kind=f"{number}", shape=(9, 64, 64), seconds={"prompt": 1.0})
        remember(path, clip)
    assert len(read_times(path)) == MAX_CLIPS
    for damage in (
        '{"a": 1}',
        "[1, {}]",
        "[",
        '[{"kind": "a", "shape": [0, 1, 1], "seconds": {}}]',
    ):
        path.write_text(damage)
        assert read_times(path) == []


def shown(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    form: Form | None = None,
    clip: float | None = None,
) -> str:
    monkeypatch.setattr("sys.stderr", PlainStream(stream))
    printer = ProgressPrinter(form=form)
    printer(Progress("decode video", 0, 1, 0.0, None))
    printer(Progress("decode video", 4, 8, 2.0, 62.0, clip_eta_s=clip))
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
    assert " 01:02 left, clip in 02:03]" in shown(monkeypatch, Terminal(), clip=123.0)
    assert drawn.endswith("\n")
    assert "\\u" not in drawn  # nothing of it was escaped


def test_a_log_gets_lines_and_a_program_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO()).splitlines() == [
        "decode video: 0/1  0.0 s", "decode video: 8/8  4.0 s  all tiles"
    ]  # fmt: skip
    assert shown(monkeypatch, Terminal(), "lines").count("\n") == 2
    monkeypatch.setattr("ltx2rt.cli.progress.LINE_S", -1)
    (line,) = shown(monkeypatch, io.StringIO(), clip=123.0).splitlines()[1:2]
    assert line == "decode video: 4/8  2.0 s, 62 s left, clip in 123 s"
    reports = [json.loads(line) for line in shown(monkeypatch, Terminal(), "json").splitlines()]
    assert reports[1] == {
        "event": "progress", "stage": "decode video", "step": 4, "total": 8, "elapsed_s": 2.0,
        "eta_s": 62.0, "detail": "", "clip_eta_s": None,
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
