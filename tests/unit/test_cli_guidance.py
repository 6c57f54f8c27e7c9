"""Guidance flags as a `GuidanceConfig`, and schedules by noise level from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.cli.requests import asked_of
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.request import Request
from ltx2rt.results.record import Record
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule
from tests.unit.command_flags import given_by

VIDEO = GuiderParams(cfg_scale=3.0, stg_scale=1.0, stg_blocks=(2,))
AUDIO = GuiderParams(cfg_scale=7.0)


def given(*arguments: str) -> dict[str, Any]:
    return given_by("--pipeline", "one-stage", "--prompt", "a", "-o", "x.mp4", *arguments)


def guidance(given: dict[str, Any], base: GuidanceConfig | None = None) -> GuidanceConfig | None:
    """Guidance by these flags, on top of a record's or of the pipeline's."""
    request = Request(config=GenerationConfig(prompt="a"), guidance=base)
    record = None if base is None else Record(pipeline="one-stage", request=request)
    return asked_of(given, record, (VIDEO, AUDIO)).request.guidance


def test_what_is_not_given_is_the_pipelines() -> None:
    assert guidance(given()) is None
    made = guidance(given("--negative-prompt", "n"))
    assert made == GuidanceConfig(negative_prompt="n")


def test_flags_for_one_and_for_both_modalities() -> None:
    made = guidance(
        given(
            "--video-cfg-guidance-scale", "5", "--v2a-guidance-scale", "2", "--cfg-mode", "apg",
            "--apg-eta", "0.5", "--scheduler", "linear-quadratic", "--audio-stg-blocks", "1", "2",
        )
    )  # fmt: skip
    assert made == GuidanceConfig(
        video=GuiderParams(
            cfg_scale=5.0, stg_scale=1.0, stg_blocks=(2,), cfg_mode="apg", apg_eta=0.5
        ),
        audio=GuiderParams(
            cfg_scale=7.0, modality_scale=2.0, stg_blocks=(1, 2), cfg_mode="apg", apg_eta=0.5
        ),
        scheduler="linear_quadratic",
    )


def test_flags_change_parts_of_a_record() -> None:
    base = GuidanceConfig(
        negative_prompt="n",
        video=GuiderParams(cfg_scale=2.0),
        audio=GuiderParams(cfg_scale=4.0),
        video_schedule=GuiderSchedule(bins={1.0: GuiderParams(cfg_scale=9.0)}),
    )
    assert guidance(given(), base) == base
    made = guidance(given("--video-rescale-scale", "0.5"), base)
    assert made.video == GuiderParams(cfg_scale=2.0, rescale_scale=0.5)
    assert (made.video_schedule, made.audio, made.negative_prompt) == (None, base.audio, "n")


def test_a_schedule_fills_in_what_its_bins_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"video": {"1.0": {"cfg_scale": 5}, "0.4": {"stg_scale": 0}}}))
    made = guidance(given("--guidance-schedule", str(path)))
    assert made is not None
    assert made.video_schedule == GuiderSchedule(
        bins={
            1.0: GuiderParams(cfg_scale=5.0, stg_scale=1.0, stg_blocks=(2,)),
            0.4: GuiderParams(cfg_scale=3.0, stg_scale=0.0, stg_blocks=(2,)),
        }
    )
    assert made.audio_schedule is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"vidoe": {}}, "'vidoe' is unknown; did you mean 'video'?"),
        ({"video": []}, "bins is []; expected an object"),
        ({"video": {"1.0": 3}}, "bins.1.0 is 3; expected an object"),
        ({"video": {}}, "needs at least one bin"),
        ({"video": {"x": {}}}, "expected a number as key"),
        ({"video": {"2.0": {}}}, "upper bounds of sigma in (0, 1]"),
        (
            {"video": {"1.0": {"cfg_scal": 3}}},
            "unknown option 'cfg_scal'; did you mean 'cfg_scale'?",
        ),
        ({"video": {"1.0": {"cfg_scale": "3"}}}, "cfg_scale is '3'; expected a number"),
        ([], "holds no table"),
    ],
)
def test_bad_schedules_are_refused_before_a_bundle_is_opened(
    data: Any, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "g.json"
    path.write_text(json.dumps(data))
    with pytest.raises(OptionError) as error:
        asked_of(given("--guidance-schedule", str(path)))
    assert said in str(error.value)
    assert "g.json" in str(error.value)
