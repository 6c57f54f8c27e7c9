"""Fields and flags: every field of a request has its flag, and the help tells its default."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.cli.fields import (
    CROSS,
    SHORTHANDS,
    WITHOUT_FLAG,
    all_flags,
    flags_for,
    spell,
    spelling,
)
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.requests import asked_of
from ltx2rt.cli.rows import ROWS
from ltx2rt.cli.run_options import RunOptions
from ltx2rt.components.enhance import EnhanceConfig
from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.config import GenerationConfig, GuidanceConfig, RuntimeConfig
from ltx2rt.docstrings import attribute_texts
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.dfr import DFRInputs
from ltx2rt.pipelines.ic_lora import ICLoraInputs
from ltx2rt.pipelines.retake_inputs import RetakeInputs
from ltx2rt.pipelines.upscale import UpscaleInputs
from ltx2rt.sampling.guidance import GuiderParams
from tests.unit.command_flags import given_by

PARTS: Mapping[str, type[Any]] = {
    "config": GenerationConfig,
    "guidance": GuidanceConfig,
    **{f"guidance.{modality}": GuiderParams for modality in CROSS},
    "runtime": RuntimeConfig,
    "output": Outputs,
    "enhance": EnhanceConfig,
    "run": RunOptions,
}


def fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every field of a request and of how it is run, by its place."""
    classes = [*PARTS.items()]
    classes += [
        ("inputs", cls) for name in PIPELINES if (cls := pipeline_class(name).Inputs) is not None
    ]
    for part, cls in classes:
        for field in dataclasses.fields(cls):
            yield f"{part}.{field.name}", field


def test_every_field_has_a_flag_or_a_reason_and_every_flag_a_field() -> None:
    known = {place for place, _ in fields()}
    with_flag = {place for flag in all_flags().values() for place in flag.places}
    numbers = {f"guidance.distilled_strengths.{stage}" for stage in (0, 1)}
    reasons = {place for place in WITHOUT_FLAG if WITHOUT_FLAG[place]}
    assert with_flag - numbers <= known
    assert known - with_flag - reasons == set()
    assert reasons - known == set()
    assert ROWS.keys() <= known - (reasons - with_flag)


def test_every_flag_has_one_name_a_text_and_one_spelling() -> None:
    names = [name for flag in all_flags().values() for name in flag.names]
    assert len(set(names)) == len(names)
    assert all(flag.help for flag in all_flags().values())
    for flag in all_flags().values():
        if flag not in SHORTHANDS:
            assert spell(Field(flag.places[0])) == flag.name


def test_pipelines_that_share_an_input_spell_it_alike() -> None:
    for name in PIPELINES:
        cls = pipeline_class(name).Inputs
        for field in dataclasses.fields(cls) if cls is not None else ():
            flag = all_flags()[key_of_input(field.name)]
            hint = typing.get_type_hints(cls)[field.name]
            spelled = spelling(hint, field.default)
            assert (spelled.get("metavar"), spelled["action"]) == (flag.metavar, flag.action)


def key_of_input(name: str) -> str:
    """The flag of a field of `Inputs`."""
    return next(k for k, f in all_flags().items() if f.places == (f"inputs.{name}",))


def test_the_help_tells_the_defaults_of_the_fields() -> None:
    defaults = dict(fields())
    told = 0
    for flag in all_flags().values():
        said = re.search(r"; default (\S+)$", flag.help)
        field = defaults.get(flag.places[0])
        if said is None or field is None:
            continue
        told += 1
        default = field.default
        text = f"{default:g}" if isinstance(default, float) else str(default)
        assert said[1] == text.replace("_", "-"), flag.name
    assert told >= 15
    absent = [
        place
        for place, field in defaults.items()
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
        for flag in all_flags().values()
        if place in flag.places and "default" not in flag.help
    ]
    assert {place.rpartition(".")[0] for place in absent} == {"guidance.video", "guidance.audio"}


def test_flags_of_a_pipeline_are_what_it_takes() -> None:
    for name in PIPELINES:
        cls = pipeline_class(name)
        keys = {flag.key for flag in flags_for(cls)}
        assert ("negative_prompt" in keys) is cls.guided
        assert ("stage_2_sigmas" in keys) is cls.two_stage
        assert ("auto_duration" in keys) is cls.auto_duration
        assert ("distilled_lora_strength_stage_1" in keys) is (name == "two-stage-hq")
        assert not keys & {*cls.unused}


def test_a_new_field_needs_no_row() -> None:
    @dataclasses.dataclass
    class Inputs:
        """Some.

        Attributes:
            one, two: of `both`. More about them.
            three: a long
                text; here.
        """

        one: int
        two: str
        three: tuple[float, ...]

    assert attribute_texts(Inputs) == {
        "one": "of both",
        "two": "of both",
        "three": "a long text; here",
    }
    assert spelling(tuple[float, ...])["count"] == "+"
    assert spelling(int | None) == {"action": "store", "convert": int, "metavar": "N"}
    off = spelling(bool, True)
    assert (off["action"], off["read"](True)) == ("store_true", False)


@pytest.mark.parametrize(
    ("flags", "inputs"),
    [
        (
            ("dfr", "--detailing-lora", "d.safetensors:0.5", "--temporal-upsample-rounds", "1"),
            DFRInputs(
                temporal_upsample_rounds=1,
                detailing_lora=Lora(path="d.safetensors", strength=0.5),
            ),
        ),
        (
            ("ic-lora", "--reference", "a.mp4", "--reference", "b.mp4:0.5", "--skip-stage-2"),
            ICLoraInputs(
                references=(
                    ReferenceFile(path=Path("a.mp4")),
                    ReferenceFile(path=Path("b.mp4"), strength=0.5),
                ),
                skip_stage_2=True,
            ),
        ),
        (
            ("retake", "--video", "a.mp4", "--start-time", "1", "--end-time", "2.5",
             "--no-regenerate-audio"),
            RetakeInputs(
                video=Path("a.mp4"), start_time=1.0, end_time=2.5, regenerate_audio=False
            ),
        ),
        (
            ("upscale", "--source", "a.mp4", "--upscale", "both", "--refine", "0.5"),
            UpscaleInputs(source=Path("a.mp4"), upscale="both", refine=0.5),
        ),
    ],
)  # fmt: skip
def test_flags_reach_the_inputs(flags: tuple[str, ...], inputs: Any) -> None:
    asked = asked_of(given_by("--prompt", "a", "--pipeline", *flags))
    assert asked.request.inputs == inputs


def test_messages_name_flags_where_a_flag_is_meant() -> None:
    problem = Problem(Field("video_frame_rate"), "=0.0 and ", Field("video"), " with {braces}")
    assert problem == "video_frame_rate=0.0 and video with {braces}"
    assert problem.spelled(spell) == "--video-frame-rate=0.0 and --video with {braces}"
    inner = Problem(Field("cfg_scale"), "=nan is not a number")
    assert inner.spelled(spell) == "cfg_scale=nan is not a number"  # of which modality?
    outer = Problem("x.json: ", inner.inside("request.guidance.audio"))
    assert outer == "x.json: cfg_scale=nan is not a number"
    assert outer.spelled(spell) == "x.json: --audio-cfg-guidance-scale=nan is not a number"
    assert spell(Field("user_prompt")) == "user_prompt"
    assert spell(Field("num_frames")) == "--num-frames"
    both = "--distilled-lora-strength-stage-1 and --distilled-lora-strength-stage-2"
    assert spell(Field("distilled_strengths")) == both


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OptionError("one sentence."), "one sentence."),
        (OptionError("it fails", ["a"]), "it fails: a"),
        (OptionError("it fails", ["a", "b"]), "it fails (2 problems):\n  - a\n  - b"),
        (OptionError("it fails", ["a"], "do that"), "it fails: a\ndo that"),
    ],
)
def test_errors_are_joined_where_they_are_shown(error: OptionError, text: str) -> None:
    assert str(error) == text
    again = type(error)(*error.args)
    assert (again.subject, again.problems, str(again)) == (error.subject, error.problems, text)


def test_size_names_both_sides() -> None:
    def config(*flags: str) -> tuple[int, int]:
        request = asked_of(given_by("--prompt", "a", *flags)).request
        return request.config.height, request.config.width

    assert config("--size", "854x480") == (480, 854)
    assert config("--size", "720p-portrait") == (1280, 720)
    with pytest.raises(OptionError, match="--size says height and width, and so does --width"):
        config("--size", "720p", "--width", "64")
    with pytest.raises(OptionError, match="'8' is not known; allowed: WIDTHxHEIGHT"):
        config("--size", "8")
    with pytest.raises(OptionError, match="no use for height"):
        config("--pipeline", "text-to-audio", "--size", "720p")
