"""Prompt files of trainers as jobs of a batch."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ltx2rt.cli.batch import DEFAULTS, SHARED, _lines, read_jobs
from ltx2rt.cli.prompt_file import entries_of, job_of_entry, job_of_line
from ltx2rt.errors import OptionError
from ltx2rt.lora.files import Lora

LINE = (
    "A bell -- loud -- rings, 5-part --n blurry, low quality --w 768 --h 512 --f 121 --fr 25 "
    "--d 42 --s 30 --g 4.5"
)


def test_a_line_with_every_option() -> None:
    assert job_of_line(LINE + " --i a b.png --v c.mp4 --ra d.wav") == {
        "prompt": "A bell -- loud -- rings, 5-part",
        "negative_prompt": "blurry, low quality",
        "width": 768,
        "height": 512,
        "num_frames": 121,
        "frame_rate": 25.0,
        "seed": 42,
        "num_inference_steps": 30,
        "video_cfg_guidance_scale": 4.5,
        "audio_cfg_guidance_scale": 4.5,
        "image": "a b.png",
        "reference": "c.mp4",
        "reference_audio": "d.wav",
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--w 64 a bell", "does not begin with a prompt"),
        ("a --x 1", "--x is not known; a line takes --n --w"),
        ("a --fs 5", "--fs is not known"),
        ("a --w 64.5", "--w '64.5' is not a number"),
        ("a --d", "--d has no value"),
        ("a --g 3 --l 4", "--l is given twice"),
    ],
)
def test_lines_that_are_no_jobs(line: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        job_of_line(line)


def test_a_file_of_prompts_is_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "sampling_prompts.txt"
    path.write_text(f"# of the trainer\n{LINE}\n\nrain --w 64 --h 64 --f 9\nrain --w wide\n")
    lora = Lora(path="x.safetensors", strength=0.5)
    options = argparse.Namespace(jobs=path, output=tmp_path / "out", resume=False)
    for key in (*DEFAULTS, *SHARED):
        setattr(options, key, None)
    options.pipeline, options.lora = "one-stage", ["x.safetensors:0.5"]
    jobs, bad = read_jobs(_lines(path), options)
    assert [job.number for job in jobs] == [2, 4]
    assert [(line.number, "--w 'wide'" in line.error) for line in bad] == [(5, True)]
    first, second = (job.asked for job in jobs)
    assert first.pipeline.name == second.pipeline.name == "one-stage"
    config, guidance = first.request.config, first.request.guidance
    assert (config.width, config.height, config.num_frames, config.seed) == (768, 512, 121, 42)
    assert guidance is not None
    assert (guidance.num_inference_steps, guidance.negative_prompt) == (30, "blurry, low quality")
    assert guidance.video.cfg_scale == guidance.audio.cfg_scale == 4.5
    assert [Path(x.path).name for x in config.loras] == [lora.path]
    assert [x.strength for x in config.loras] == [lora.strength]


TOML = """
[prompt]
width = 768
height = 512
cfg_scale = 4.5
negative_prompt = "blurry"

[[prompt.subset]]
prompt = "a bell"
frame_count = 121
sample_steps = 30
seed = 42

[[prompt.subset]]
prompt = "rain"
height = 256
depth = 3
"""


def test_toml_and_json_of_prompts(tmp_path: Path) -> None:
    options = argparse.Namespace(output=tmp_path / "out", resume=False)
    for key in (*DEFAULTS, *SHARED):
        setattr(options, key, None)
    options.pipeline = "one-stage"
    options.jobs = tmp_path / "prompts.toml"
    options.jobs.write_text(TOML)
    jobs, bad = read_jobs(_lines(options.jobs), options)
    (job,) = jobs
    config, guidance = job.asked.request.config, job.asked.request.guidance
    assert (config.width, config.height, config.num_frames, config.seed) == (768, 512, 121, 42)
    assert guidance is not None
    assert (guidance.num_inference_steps, guidance.negative_prompt) == (30, "blurry")
    assert guidance.video.cfg_scale == guidance.audio.cfg_scale == 4.5
    assert [line.number for line in bad] == [2]
    assert "depth" in bad[0].error
    options.jobs = tmp_path / "prompts.json"
    options.jobs.write_text('["a bell --w 64 --h 64", {"prompt": "rain", "frame_count": 9}, 3]')
    jobs, bad = read_jobs(_lines(options.jobs), options)
    assert [j.asked.request.config.prompt for j in jobs] == ["a bell", "rain"]
    assert [j.asked.request.config.num_frames for j in jobs][1] == 9
    assert [line.number for line in bad] == [3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt = 3", "holds no prompts as trainers have them"),
        ("[prompt]\nsubset = [1]", "holds no prompts as trainers have them"),
        ("[[", "is not TOML"),
    ],
)
def test_toml_of_something_else(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        entries_of(Path("x.toml"), text)


def test_entries_that_say_a_thing_twice() -> None:
    with pytest.raises(OptionError, match="num_frames is given twice, once as frame_count"):
        job_of_entry({"num_frames": 9, "frame_count": 17})
    assert entries_of(Path("jobs.json"), '{"prompt": "a"}\n{"prompt": "b"}') is None
