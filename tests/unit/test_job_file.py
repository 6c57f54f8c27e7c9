"""Job files and records: the same as the flags, and nothing that a bad file could do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt.cli import job_file
from ltx2rt.cli.fields import all_flags
from ltx2rt.cli.flags import Flag
from ltx2rt.cli.requests import asked_of
from ltx2rt.config import GenerationConfig, GuidanceConfig, ImageCondition, RuntimeConfig
from ltx2rt.errors import Ltx2rtError, OptionError
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.base import Pipeline, pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.ic_lora import ICLoraInputs
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.retake_inputs import RetakeInputs
from ltx2rt.plain_data import from_plain, parse_json, to_plain
from ltx2rt.results.record import Record, read_record, record_in, record_text
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule
from tests.unit.command_flags import given_by


def completed(path: Path, *arguments: str) -> dict[str, Any]:
    return {**job_file.read_job(path)[0], **given_by(*arguments)}


def config_of(given: dict[str, Any], base: GenerationConfig | None = None) -> GenerationConfig:
    """What to make by these flags, on top of a record's."""
    record = None
    if base is not None:
        record = Record(pipeline="distilled", request=Request(config=base))
    return asked_of(given, record).request.config


JSON_JOB = {
    "prompt": "a lake", "pipeline": "two-stage", "seed": [3, 4], "num-frames": 17, "height": 64,
    "frame_rate": 30, "image": ["p.png@0:0.5", "/abs/q.png"], "lora": "l.safetensors:0.5",
    "distilled_lora": "d.safetensors", "video_stg_blocks": [1, 2], "sigmas": [1, 0.5, 0],
    "stage_2_sampler": "gradient-estimation", "cfg_mode": "apg", "apg_eta": 0.5, "stream": True,
    "quiet": False, "output": "out.mp4", "tiling": "512x64",
}  # fmt: skip
TOML_JOB = """
prompt = "a lake"
pipeline = "two-stage"
seed = [3, 4]
num-frames = 17
height = 64
frame_rate = 30
image = ["p.png@0:0.5", "/abs/q.png"]
lora = "l.safetensors:0.5"
distilled_lora = "d.safetensors"
video_stg_blocks = [1, 2]
sigmas = [1, 0.5, 0]
stage_2_sampler = "gradient-estimation"
cfg_mode = "apg"
apg_eta = 0.5
stream = true
quiet = false
output = "out.mp4"
tiling = "512x64"
"""


def test_a_job_equals_the_flags(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(JSON_JOB))
    (tmp_path / "job.toml").write_text(TOML_JOB)
    flags = given_by(
        "--prompt", "a lake", "--pipeline", "two-stage", "--seed", "3,4", "--num-frames", "17",
        "--height", "64", "--frame-rate", "30", "--image", f"{tmp_path}/p.png@0:0.5",
        "--image", "/abs/q.png", "--lora", f"{tmp_path}/l.safetensors:0.5",
        "--distilled-lora", f"{tmp_path}/d.safetensors", "--video-stg-blocks", "1", "2",
        "--sigmas", "1", "0.5", "0", "--stage-2-sampler", "gradient-estimation",
        "--cfg-mode", "apg", "--apg-eta", "0.5", "--stream", "-o", f"{tmp_path}/out.mp4",
        "--tiling", "512x64",
    )  # fmt: skip
    for name in ("job.json", "job.toml"):
        assert completed(tmp_path / name) == flags
    config = config_of(flags)
    assert (config.width, config.sigmas, config.stage_2_sampler) == (
        1536,
        (1.0, 0.5, 0.0),
        "gradient_estimation",
    )


def test_the_command_line_wins(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps(JSON_JOB))
    merged = completed(job, "--seed", "9", "--image", "z.png", "--pipeline", "keyframe")
    assert (merged["seed"], merged["image"], merged["pipeline"]) == ([9], ["z.png"], "keyframe")
    assert merged["prompt"] == "a lake"


def test_another_prompt_forgets_where_the_old_one_came_from() -> None:
    base = GenerationConfig(prompt="long", user_prompt="short", embeddings=Path("/e.safetensors"))
    assert config_of(given_by("--seed", "3"), base) == dataclasses.replace(base, seed=3)
    assert config_of(given_by("--prompt", "new"), base) == GenerationConfig(prompt="new")


def test_dumped_jobs_give_the_same_flags(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(JSON_JOB))
    first = completed(tmp_path / "job.json")
    (tmp_path / "other").mkdir()
    job_file.dump_job(tmp_path / "other" / "dump.json", first, None)
    assert completed(tmp_path / "other" / "dump.json") == first


def test_values_of_a_job_are_what_the_flag_holds() -> None:
    switch = Flag(name="--no-sound", places=("x",), help="", action="store_true")
    assert (switch.key, switch.of_job(True, Path("/f"))) == ("no_sound", True)
    assert switch.of_job(False, Path("/f")) is None
    limits = Flag(name="--limits", places=("x",), help="", convert=float, count=2)
    assert limits.of_job([1, 2.5], Path("/f")) == [1.0, 2.5]
    with pytest.raises(OptionError, match="3 values, expected 2"):
        limits.of_job([1, 2, 3], Path("/f"))
    files = Flag(name="--file", places=("x",), help="", action="append", is_path=True)
    assert files.of_job("a.mp4:0.5", Path("/f")) == ["/f/a.mp4:0.5"]
    assert files.of_job(["/a.mp4", "-"], Path("/f")) == ["/a.mp4", "-"]
    seeds = all_flags()["seed"]
    assert seeds.of_job(3, Path("/f")) == seeds.of_job("3", Path("/f")) == [3]
    assert seeds.of_job(["1,2", 3], Path("/f")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"promt": "a", "sede": 1}', ["'promt' is unknown; did you mean 'prompt'?", "'sede'"]),
        ('{"seed": "x", "height": 6.5, "stream": 1}', ["3 problems", "6.5 is not a whole number"]),
        ('{"height": "64"}', ["'64' is not a whole number"]),
        ('{"height": true}', ["True is not a whole number"]),
        ('{"frame_rate": NaN}', ["NaN is not a number"]),
        ('{"prompt": "a", "prompt": "b"}', ["'prompt' is given twice"]),
        ('{"sampler": "ddim"}', ["allowed: euler, euler-ancestral, res-2s"]),
        ('{"sigmas": []}', ["the list is empty"]),
        ('{"sigmas": 1}', ["1 is not a list"]),
        ('{"image": [1, {"a": 2}]}', ["{'a': 2} is not text"]),
        ('{"output": "a\\u0000b.mp4"}', ["is not a path"]),
        ('{"job": "x", "help": true, "bundle": "b"}', ["3 problems"]),
        ("[1]", ["holds no table"]),
        ('{"prompt": ', ["is not JSON"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("\xff", ["is not JSON"]),
        ('{"record": {"pipeline": "x"}}', ["pipeline 'x' is unknown"]),
    ],
)
def test_bad_jobs_say_everything_at_once(tmp_path: Path, text: str, parts: list[str]) -> None:
    job = tmp_path / "job.json"
    job.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError) as error:
        completed(job)
    assert all(part in str(error.value) for part in parts), error.value


def test_job_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"cannot read .*absent.json"):
        completed(tmp_path / "absent.json")
    with pytest.raises(OptionError, match="is not a job: name a"):
        completed(tmp_path / "job.yaml")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(OptionError, match="Is a directory"):
        completed(tmp_path / "d.json")
    big = tmp_path / "big.json"
    big.write_text(" " * 100)
    monkeypatch.setattr(job_file, "MAX_JOB_BYTES", 50)
    with pytest.raises(OptionError, match="too large"):
        completed(big)
    (tmp_path / "x.toml").write_text("a = ")
    with pytest.raises(OptionError, match="is not TOML"):
        completed(tmp_path / "x.toml")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*all_flags(), "record", "x"]), JSON_VALUES, max_size=4))
def test_any_job_is_taken_or_refused_in_words(job: dict[str, Any]) -> None:
    with contextlib.suppress(Ltx2rtError):
        asked_of(*job_file.read_flags(job, Path("/f"), "job"))


REQUEST = Request(
    config=GenerationConfig(
        prompt='né ☂ "q" \n',
        seed=2**63,
        frame_rate=29.97,
        images=(ImageCondition(path=Path("/a/b.png"), frame=8, strength=0.1, crf=0),),
        loras=(Lora(path="/l.safetensors", strength=-0.3),),
        generated_keyframes=(8, 16),
        sampler="res_2s",
        stage_2_sigmas=(0.9, 0.1, 0.0),
    ),
    guidance=GuidanceConfig(
        video=GuiderParams(cfg_scale=2.0, stg_blocks=(1, 2)),
        audio_schedule=GuiderSchedule(bins={1.0: GuiderParams(), 0.25: GuiderParams(cfg_scale=9)}),
        distilled_strengths=(0.1, 0.7),
    ),
)


def test_records_come_back_as_they_were() -> None:
    record = Record(pipeline="two-stage", request=REQUEST, bundle="b", stages={"stage_1": {}})
    assert read_record(record_text(record), "x.mp4") == record


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        GenerationConfig,
        prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        seed=st.integers(-(2**63), 2**64 - 1),
        frame_rate=st.floats(1, 240),
        generated_keyframes=st.integers(0, 9) | st.lists(st.integers(0, 99)).map(tuple),
    )
)
def test_any_config_survives_json(config: GenerationConfig) -> None:
    text = json.dumps(to_plain(config))
    assert from_plain(GenerationConfig, parse_json(text), "config") == config


def example(kind: Any, place: int = 1) -> Any:
    """Some value of a type; numbers grow with their place among the fields."""
    if isinstance(kind, types.UnionType):
        return example(typing.get_args(kind)[0], place)
    if typing.get_origin(kind) is tuple:
        return (example(typing.get_args(kind)[0]),)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        required = [
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if kind is ICLoraInputs:  # one of two is needed
            required.append("references")
        if kind is RetakeInputs:  # something must be made anew
            required += ["start_time", "end_time", "mask", "video_parts"]
        return kind(**{name: example(hints[name], i) for i, name in enumerate(required, 1)})
    return {Path: Path("/a.mp4"), float: place / 8, int: place, str: "a", bool: True}[kind]


def test_the_inputs_of_every_pipeline_come_back() -> None:
    for name in PIPELINES:
        inputs = pipeline_class(name).Inputs
        request = dataclasses.replace(REQUEST, inputs=None if inputs is None else example(inputs))
        record = Record(pipeline=name, request=request)
        assert read_record(record_text(record), "x.mp4") == record


def test_a_record_is_all_that_a_repetition_needs() -> None:
    """No flag is asked for that the record answers, and the command line may change parts."""
    lora = Lora(path="/d.safetensors")
    for name in PIPELINES:
        cls = pipeline_class(name)
        guidance = None
        if issubclass(cls, GuidedPipeline) and cls.guided:
            own = {"distilled_lora": lora if cls.two_stage else None}
            own |= {} if cls.has_strengths else {"distilled_strengths": None}
            guidance = dataclasses.replace(REQUEST.guidance, **own)
        config = dataclasses.replace(REQUEST.config, **fitting(cls))
        inputs = None if cls.Inputs is None else example(cls.Inputs)
        request = Request(config=config, guidance=guidance, inputs=inputs)
        record = Record(pipeline=name, request=request, max_batch_size=3, threads=2)
        asked = asked_of(given_by("--seed", "4", "-o", "x.mp4"), record)
        assert asked.pipeline is cls
        assert asked.request == dataclasses.replace(
            request, config=dataclasses.replace(config, seed=4)
        )
        assert asked.runtime == RuntimeConfig(max_batch_size=3, threads=2)
        assert asked_of(given_by("--threads", "0"), record).runtime.threads == 0
    other = asked_of(given_by("--pipeline", "distilled", "--prompt", "a"), record)
    assert other.request == Request(config=dataclasses.replace(config, prompt="a"))
    two_stage = Record(pipeline="two-stage", request=Request(config=config, guidance=guidance))
    flags = given_by("--pipeline", "keyframe", "--prompt", "a", "--image", "x.png")
    assert asked_of(flags, two_stage).request.guidance is None


def fitting(cls: type[Pipeline]) -> dict[str, Any]:
    """What else a config must say for a pipeline."""
    changed: dict[str, Any] = {"generated_keyframes": 0}
    if "images" in cls.unused:
        changed["images"] = ()
    if "audio" in cls.unused:
        changed |= {"audio": None, "audio_start_time": 0.0, "audio_max_duration": None}
    elif cls.name == "audio-to-video":
        changed["audio"] = Path("/a.wav")
    if not cls.two_stage:
        changed["stage_2_sigmas"] = None
    if not cls.needs_prompt:  # nothing is refined
        changed |= {"prompt": "", "loras": ()}
    return changed


GOOD = to_plain(Record(pipeline="two-stage", request=REQUEST))


def changed(path: str, value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    inner = data
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("{", "is damaged"),
        ("[]", "names no pipeline"),
        ('{"pipeline": 3}', "names no pipeline"),
        (changed("request", None), "request is None; expected an object"),
        (changed("request.inputs", {}), "takes no inputs"),
        (changed("request.config.seed", 1.5), "request.config.seed is 1.5; expected a whole"),
        (changed("request.config.seed", True), "expected a whole number"),
        (changed("request.config.height", "64"), "request.config.height is '64'"),
        (changed("request.config.frame_rate", math.nan), "frame_rate=nan"),
        (changed("request.config.frame_rate", 10**400), "expected a number"),
        (changed("request.config.images", [{"path": ""}]), "path is ''; expected a path"),
        (changed("request.config.loras", {}), "expected a list"),
        (changed("request.config.sampler", "x"), "expected one of euler"),
        (changed("request.config.more", 1), "request.config has an unknown option 'more'"),
        (changed("request.guidance.distilled_strengths", [1.0]), "expected a list of 2"),
        (changed("request.guidance.audio_schedule.bins", {"x": {}}), "a number as key"),
        (changed("request.guidance.audio_schedule.bins", {"nan": {}}), "upper bounds"),
        (changed("max_batch_size", None), "max_batch_size is None"),
    ],
)
def test_bad_records_say_what_is_wrong(data: Any, part: str) -> None:
    with pytest.raises(OptionError, match=r"x\.mp4") as error:
        read_record(data, "x.mp4")
    assert part in str(error.value)


def test_a_huge_record_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltx2rt.results.record.MAX_RECORD_CHARACTERS", 10)
    with pytest.raises(OptionError, match="longer than any that ltx2rt writes"):
        read_record("[" * 11, "x.mp4")


def test_files_without_a_usable_record(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0" * 100)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    (tmp_path / "a.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    for name in ("a.mp4", "a.png", "a.safetensors", "absent.mp4", "absent.png"):
        with pytest.raises(Ltx2rtError) as error:
            record_in(tmp_path / name)
        assert name in str(error.value)


def test_variables_fill_in_texts(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    job = {
        "variables": {"animal": "cat", "number": 3, "place": "${animal}"},
        "prompt": "a ${animal} in ${place}, $5",
        "image": ["${animal}.png@8"],
        "seed": "${number}",
        "output": "${animal}-${number}.mp4",
    }
    path.write_text(json.dumps(job))
    held, _ = job_file.read_job(path, {"animal": "dog"})
    assert held["prompt"] == "a dog in ${animal}, $5"  # a value is no template
    assert held["seed"] == [3]
    assert held["image"] == [f"{tmp_path}/dog.png@8"]
    assert held["output"] == f"{tmp_path}/dog-3.mp4"
    path.write_text(json.dumps({"prompt": "a ${animal}"}))
    assert job_file.read_job(path)[0]["prompt"] == "a ${animal}"
    path.write_text(json.dumps({"variables": {"animla": "cat"}, "prompt": "a ${animal}"}))
    with pytest.raises(OptionError, match="variable 'animal' is unknown; did you mean 'animla'"):
        job_file.read_job(path)
    path.write_text(json.dumps({"variables": ["cat"], "prompt": "a"}))
    with pytest.raises(OptionError, match="variables is not a table of texts and numbers"):
        job_file.read_job(path)


def test_a_random_seed_is_a_number_that_nobody_chose() -> None:
    first, second = (asked_of(given_by("--prompt", "a", "--seed", "random")) for _ in range(2))
    assert first.request.config.seed == first.seeds[0] != second.seeds[0]
    several = asked_of(given_by("--prompt", "a", "--seed", "random", "--num-videos", "3"))
    assert len(set(several.seeds)) == 3
