"""The command line without a model: help, exit codes, defaults."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ltx2rt
from ltx2rt.cli.__main__ import COMMANDS, main, sentence_of
from ltx2rt.cli.build import parse_lora
from ltx2rt.cli.demo import given_of
from ltx2rt.cli.parser import Parser
from ltx2rt.cli.progress import ProgressPrinter
from ltx2rt.cli.requests import asked_of
from ltx2rt.cli.rows import image
from ltx2rt.config import GenerationConfig, ImageCondition, RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import check_generation_size
from ltx2rt.lora.files import Lora
from ltx2rt.partial import Partial
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Progress
from tests.unit.command_flags import given_by
from tests.unit.conftest import HEAVY


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


def options(command: str, *arguments: str) -> argparse.Namespace:
    parser = Parser()
    importlib.import_module(f"ltx2rt.cli.{command}").add_arguments(parser)
    return parser.parse_args(arguments)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(f" {name} {line}" in out for name, line in COMMANDS.items())


#: they answer no question: a server, and the script of a shell
SILENT = {"serve", "completion"}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: ltx2rt {command}")
    if command not in SILENT:
        assert "--json" in out


def test_help_of_one_pipeline_shows_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["generate", "--help"]) == 0
    everything = capsys.readouterr().out
    assert exit_code(["generate", "--pipeline", "distilled", "--help"]) == 0
    distilled = capsys.readouterr().out
    assert exit_code(["generate", "--pipeline", "one-stage", "-h"]) == 0
    one_stage = capsys.readouterr().out
    for flag, shown in (
        ("--prompt", (True, True, True)),
        ("--negative-prompt", (True, False, True)),
        ("--video-stg-blocks", (True, False, True)),
        ("--stage-2-sigmas", (True, True, False)),
    ):
        assert tuple(flag in text for text in (everything, distilled, one_stage)) == shown, flag
    assert "guidance (for guided pipelines)" not in distilled
    for name, hidden, shown in (
        ("retake", ["--height", "--num-frames", "--auto-duration"], ["--tiling", "--image"]),
        ("text-to-audio", ["--stream", "--frames", "--a2v", "--distilled-lora"], ["--audio-cfg"]),
        ("audio-to-video", ["--v2a", "--distilled-lora-strength"], ["--a2v", "--distilled-lora"]),
        ("two-stage-hq", [], ["--distilled-lora-strength-stage-2"]),
    ):
        assert exit_code(["generate", "--pipeline", name, "--help"]) == 0
        said = capsys.readouterr().out
        assert not [flag for flag in hidden if f" {flag}" in said]
        assert all(f" {flag}" in said for flag in shown)
    assert DistilledPipeline.__doc__ is not None
    assert DistilledPipeline.__doc__.splitlines()[0] in distilled


def test_pipelines_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipelines", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(PIPELINES)
    for name, row in rows.items():
        cls = pipeline_class(name)
        assert 20 < len(row["summary"]) < 300
        assert (row["guided"], row["two_stage"]) == (cls.guided, cls.two_stage)
        assert tuple(row["requires"]) == cls.requires
        assert row["default_size"] == (cls.default_size and list(cls.default_size))
        fields = dataclasses.fields(cls.Inputs) if cls.Inputs else ()
        assert len(row["flags"]) == len(fields)
    assert main(["pipelines"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{text}" for name in PIPELINES)
    assert "one stage, 768x512; guided; needs" in text
    assert "one stage; takes --source" in text  # its size is the source's


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ltx2rt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ltx2rt {ltx2rt.__version__}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"ltx2rt {ltx2rt.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "generate  generate a clip with sound from a bundle"),
        (["--verison"], "unrecognized arguments: --verison; did you mean '--version'?"),
        (
            ["generate", "b", "a", "cat", "-o", "x.mp4"],
            "a cat; a prompt is one text in quotes: --p",
        ),
        (["generate", "b", "--pipeline", "distiled"], "did you mean 'distilled'?"),
        (["serve", "b", "--data", "d", "--port", "80000"], "invalid port: '80000'"),
        (["gnerate"], "invalid choice: 'gnerate'; did you mean 'generate'?"),
        (["build", "--checkpoint", "x", "--plain-layers", "0;1"], "'0;1' is not a list of layers"),
        (["doctor", "--jsno"], "unrecognized arguments: --jsno; did you mean '--json'?"),
        (["doctor", "--js"], "unrecognized arguments: --js"),
        (["generate", "-o", "x.mp4"], "required: bundle"),
        (["generate", "b", "--prompt", "a", "-o", "x.mp4", "--seed", "x"], "invalid int value"),
        (["generate", "b", "--prompt", "a", "-o", "x.mp4", "--sampler", "x"], "invalid choice"),
        (["build", "-o", "b"], "required: --checkpoint"),
        (["build", "--precision", "bf16", "--precision", "fp32"], "--precision: it is given twice"),
        (["generate", "b", "--height", "64", "--height=128"], "--height: it is given twice"),
        (["generate", "b", "-o", "x.mp4", "--output", "y.mp4"], "it is given twice"),
        (["generate", "b", "--sigma", "1"], "arguments: --sigma 1; did you mean '--sigmas'?"),
        (["generate", "b", "--hieght=64"], "did you mean '--height'?"),
    ],
)
def test_usage_errors(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: ltx2rt")
    assert said in captured.err


def test_generate_defaults_are_those_of_the_configs() -> None:
    given = given_by("--prompt", "a lake", "-o", "x.mp4")
    assert given == {"prompt": "a lake", "output": "x.mp4"}  # the rest is the classes' to say
    asked = asked_of(given)
    assert asked.request == Request(config=GenerationConfig(prompt="a lake"))
    assert asked.runtime == RuntimeConfig()
    assert asked.seeds == (GenerationConfig(prompt="a").seed,)


def test_generate_flags_reach_the_config() -> None:
    given = given_by(
        "--prompt", "a", "-o", "x.mp4", "--seed", "-3", "--height", "64",
        "--width", "128", "--num-frames", "17", "--frame-rate", "30", "--tiling", "none",
        "--image", "a.png", "--image", "b.png@8:0.5:0",
    )  # fmt: skip
    assert asked_of(given).request.config == GenerationConfig(
        prompt="a", seed=-3, height=64, width=128, num_frames=17, frame_rate=30.0, tiling="none",
        images=(
            ImageCondition(path=Path("a.png")),
            ImageCondition(path=Path("b.png"), frame=8, strength=0.5, crf=0),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photo.png@x", "is not FILE[@FRAME[:STRENGTH[:CRF]]]"),
        ("photo.png@0:1:2:3", "is not FILE[@FRAME[:STRENGTH[:CRF]]]"),
        ("photo.png@0:1.5", "strength=1.5 of image photo.png is not in [0, 1]"),
        ("photo.png@-8", "frame=-8 of image photo.png is negative"),
        ("photo.png@8:1", "the clip has 9 frames"),
    ],
)
def test_bad_images_say_what_is_wrong(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = text.replace("@8:", "@9:")
    arguments = ["generate", "b", "--prompt", "a", "-o", "x.mp4", "--num-frames", "9"]
    assert main([*arguments, "--image", image]) == 2
    assert said in capsys.readouterr().err


def test_a_file_name_may_hold_the_separators(tmp_path: Path) -> None:
    assert image("@0") == {"path": "@0"}
    photo = tmp_path / "photo@2"
    photo.touch()
    assert image(str(photo)) == {"path": str(photo)}
    assert image(f"{photo}@8") == {"path": str(photo), "frame": 8}
    colon = tmp_path / "a:0.5"
    colon.touch()
    assert parse_lora(str(colon)) == Lora(path=str(colon), strength=1.0)
    assert parse_lora(f"{colon}:2") == Lora(path=str(colon), strength=2.0)
    assert parse_lora("lora.safetensors") == Lora(path="lora.safetensors", strength=1.0)
    assert parse_lora("l.safetensors:-0.5") == Lora(path="l.safetensors", strength=-0.5)


def test_prompt_must_be_text() -> None:
    with pytest.raises(OptionError, match="prompt is empty"):
        GenerationConfig(prompt=" \n")
    with pytest.raises(OptionError, match="not valid UTF-8"):
        GenerationConfig(prompt="lake \udcff")
    assert GenerationConfig(prompt="né ☂ 🌊\nline").prompt.endswith("line")


def test_demo_asks_for_a_valid_clip_and_passes_everything_on() -> None:
    parsed = options("demo", "--prompt=-- a", "--seed=-7", "-o=-x.mp4", "--quiet", "--json")
    check_generation_size(parsed.height, parsed.width, parsed.num_frames)
    asked = asked_of(given_of(parsed))
    assert asked.output.clip == Path("-x.mp4")
    config = asked.request.config
    assert (config.prompt, asked.seeds) == ("-- a", (-7,))
    assert (config.height, config.width) == (parsed.height, parsed.width)
    assert asked.run.quiet
    assert asked.run.json


def test_demo_refuses_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = tmp_path / "keep"
    output = ["-o", str(tmp_path / "x.mp4"), "--keep", str(keep)]
    assert main(["demo", *output, "--height", "101"]) == 2
    assert "height=101" in capsys.readouterr().err
    assert not keep.exists()
    keep.mkdir()
    assert main(["demo", *output]) == 2
    assert f"{keep} exists" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [keep]


def test_progress_is_one_line_a_stage_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    report = ProgressPrinter()
    for step in range(9):
        report(Progress("stage_1", step, 8, step * 0.5, 1.0 if step else None))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "stage_1: 8/8  4.0 s"
    assert len(captured.err.splitlines()) == 2
    ProgressPrinter(quiet=True)(Progress("stage_1", 8, 8, 4.0, None))
    assert capsys.readouterr().err == ""


def test_errors_of_the_system_become_sentences(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("x" * 300 + ".mp4")
    assert main(["generate", "b", "--prompt", "a", "-o", str(long)]) == 2
    assert "ltx2rt: error: File name too long" in capsys.readouterr().err

    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ltx2rt.cli.doctor.run", interrupted)
    assert main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err

    def too_large(_: argparse.Namespace) -> int:
        np.empty((1 << 30, 1 << 28), np.float32)
        return 0

    monkeypatch.setattr("ltx2rt.cli.doctor.run", too_large)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert "takes more memory than there is" in said
    assert "Traceback" not in said


def test_doctor_reports_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["runtime"]["numpy"]
    assert report["cpus"] >= 1
    assert main(["doctor"]) == 0
    assert "CPUs" in capsys.readouterr().out


def test_missing_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [m for m in sys.modules if m.startswith("ltx2rt_export")]:
        monkeypatch.delitem(sys.modules, name)
    files = ["--checkpoint", str(tmp_path / "x"), "-o", str(tmp_path / "b")]
    assert main(["build", *files]) == 2
    assert "[build]'" in capsys.readouterr().err


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "ltx2rt.cli", "doctor"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, b"")


def loaded_by(*arguments: str) -> set[str]:
    """Modules that a run of the command imports."""
    script = (
        "import sys\nstart = set(sys.modules)\nfrom ltx2rt.cli.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('loaded', *set(sys.modules) - start)"
    )
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_help_loads_the_command_line_and_nothing_else() -> None:
    """What it takes is measured by `python -m benchmarks.run --case cli-help`."""
    loaded = loaded_by("--help")
    ours = {"ltx2rt", *(f"ltx2rt.{m}" for m in ("cli", "cli.__main__", "cli.parser", "errors"))}
    ours |= {"ltx2rt.cli.signals", "ltx2rt.cli.streams"}
    assert {m for m in loaded if m.split(".")[0] not in sys.stdlib_module_names} == ours
    # 22 where this was written, 58 where `site` loads less; `email` alone adds more than these 12
    assert len(loaded) < 70


@pytest.mark.parametrize("arguments", [["generate", "--help"], ["pipelines"], ["batch", "--help"]])
def test_what_runs_nothing_loads_no_library_of_media_or_models(arguments: list[str]) -> None:
    heavy = {"onnxruntime", "av", "OpenEXR", "tokenizers", "torch", "ltx2rt_export"}
    assert not heavy & loaded_by(*arguments)


def test_warnings_of_ours_are_one_line_without_a_place_in_the_code() -> None:
    script = (
        "import sys, warnings\n"
        "from ltx2rt.cli import __main__, doctor\n"
        "def run(options):\n"
        "    for number in range(2):  # said once, although filters change between\n"
        "        warnings.warn('the sky is grey.')\n"
        "        with warnings.catch_warnings():\n"
        "            warnings.simplefilter('ignore')\n"
        "    return 0\n"
        "doctor.run = run\n"
        "sys.exit(__main__.main(['doctor']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == "ltx2rt: warning: the sky is grey.\n"


def test_a_full_disk_says_what_to_do() -> None:
    said = sentence_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert said == "No space left on device: make room, or write elsewhere, and repeat the command."


def test_places_that_nothing_can_be_made_in_are_named(tmp_path: Path) -> None:
    file, missing = tmp_path / "file", tmp_path / "none" / "x.json"
    file.touch()

    def said(make: Callable[[], object]) -> str:
        with pytest.raises(OSError, match="Errno") as raised:
            make()
        return sentence_of(raised.value)

    below = said((file / "a" / "b").mkdir)
    assert below.startswith(f"{file / 'a' / 'b'} cannot be below {file}, which is no folder (")
    assert said(missing.read_bytes).startswith(f"the folder of {missing} does not exist (No such")
    lost = tmp_path / "x.json"
    assert said(lost.read_bytes) == (
        f"{lost} cannot be opened, or made in the folder {tmp_path} (No such file or directory); "
        "name another one."
    )
    if Path("/proc/self").exists():  # a folder in which nobody can make anything
        assert said(partial(Partial, Path("/proc/x.onnx"))).startswith(
            "nothing can be made in the folder /proc ("
        )
