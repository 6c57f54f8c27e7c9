"""Every default stands beside the official command's, and every difference was decided."""

from __future__ import annotations

import tomllib

import pytest

from tests import defaults_page
from tests.defaults_page import DATA, PAGE, official, ours, page, pipelines, rows_of


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_every_decision_is_about_a_difference() -> None:
    decided = set(tomllib.loads(DATA.read_text())["decisions"])
    different = {
        key
        for name in pipelines()
        for row in rows_of(name)
        if row.why
        for key in (row.argument, f"{row.argument}@{name}")
    }
    assert decided <= different
    assert not any(row.official == row.ours and row.why for n in pipelines() for row in rows_of(n))


def test_an_undecided_difference_stops_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: str, version: str) -> dict[str, object]:
        return {**ours(name, version), "seed": 7}

    monkeypatch.setattr(defaults_page, "ours", other)
    with pytest.raises(LookupError, match="seed of one-stage is"):
        rows_of("one-stage")


def test_official_numbers_are_those_of_the_specification() -> None:
    """Spot values of docs/spec/cli.md, docs/spec/pipelines.md §0.8."""
    assert official("two-stage-hq")["height"] == 1088
    assert official("one-stage")["num_inference_steps"]["LTX-2"] == 40
    assert official("hdr-ic-lora")["tiling"] == "1280x32:256x16"
    assert "video_cfg_scale" not in official("text-to-audio")
    assert len(pipelines()) == 12
