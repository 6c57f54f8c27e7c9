"""Builds that were killed go on from their finished weight files, and give the same bundle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.lora.files import Lora
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.quantize import overlay
from ltx2rt_export.resume import weights_key
from tests.parity.command_line import (
    Export,
    build_flags,
    expect_user_error,
    ltx2rt,
    unchanged,
    use_graphs_of,
)
from tests.parity.demo_loras import write_demo_lora

#: linears of a block, of which the demo model has three
LINEARS = 28
FP8 = ("--precision", "fp8", "--components", "transformer_block,transformer_tail", "--quiet")

#: ends like a kill in the middle of the second layer, or when all weights are there
KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
import ltx2rt_export.bundle as bundle
import ltx2rt_export.quantize.overlay as overlay
from ltx2rt.cli.__main__ import main
from tests.parity.command_line import use_graphs_of

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def after(calls, function):
    def counted(*arguments):
        nonlocal calls
        calls -= 1
        return kill() if calls < 0 else function(*arguments)
    return counted

use_graphs_of(Path(sys.argv[1]), pytest.MonkeyPatch())
if sys.argv[2] == "quantize":
    overlay.quantize_weight = after(33, overlay.quantize_weight)
else:
    bundle.attach_overlays = kill
main(sys.argv[3:])
"""


#: what makes another build of one, besides changed weights
CHANGES = ("precision", "layers", "lora", "code")


@pytest.fixture
def ready_graphs(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exporting gives the demo bundle's own graphs."""
    return use_graphs_of(demo_bundle, monkeypatch)


@pytest.fixture
def quantized(ready_graphs: Export, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights that were quantised, as it happens."""
    names: list[str] = []

    def noted(files: object, entry: object, kind: object) -> object:
        names.append(entry.name)  # type: ignore[attr-defined]
        return quantize(files, entry, kind)  # type: ignore[arg-type]

    quantize = overlay.quantize_weight
    monkeypatch.setattr(overlay, "quantize_weight", noted)
    return names


@pytest.fixture
def model(demo_model: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The demo model with a checkpoint of our own, to change."""
    own = tmp_path / "model" / demo_model["checkpoint"].name
    own.parent.mkdir()
    shutil.copy(demo_model["checkpoint"], own)
    return {**demo_model, "checkpoint": own}


def killed_build(demo_bundle: Path, where: str, target: Path, *command: object) -> Path:
    """What a killed build left beside its target: the folder that it worked in."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    arguments = ("build", *command, "-o", target)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(demo_bundle), where, *map(str, arguments)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not target.exists()
    (work,) = target.parent.glob(f".{target.name}.*.part")
    return work


def content(bundle: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


def files_in(folder: Path) -> dict[str, int]:
    """Finished weight files, and what tells whether they were written again."""
    found = (folder / "weights").rglob("[!.]*.safetensors")
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_build_goes_on_with_the_next_layer(
    lora: bool, demo_bundle: Path, model: dict[str, Path], tmp_path: Path, quantized: list[str]
) -> None:
    command: tuple[object, ...] = (*build_flags(model), *FP8[:-1])
    if lora:
        command += ("--lora", write_demo_lora(tmp_path / "l.safetensors", model, 0))
    out = tmp_path / "out"
    out.mkdir()
    work = killed_build(demo_bundle, "quantize", out / "b", *command)
    left = files_in(work)
    fused = ["weights/loras.safetensors"] if lora else []
    assert sorted(left) == [*fused, "weights/transformer_block/00.safetensors"]
    assert list(work.glob("weights/*/.ltx2rt-*.part"))  # the second had begun
    outcome = ltx2rt("build", *command, "-o", out / "b")
    assert outcome.code == 0, outcome.err
    assert "quantize: 2/2" in outcome.err
    assert "1 layers were done" in outcome.err
    assert len(quantized) == 2 * LINEARS
    assert not any("transformer_blocks.0." in name for name in quantized)
    now = files_in(out / "b")
    assert {name: now[name] for name in left} == left
    assert [p.name for p in out.iterdir()] == ["b"]
    assert ltx2rt("build", *command, "-o", tmp_path / "whole").code == 0
    assert content(out / "b") == content(tmp_path / "whole")
    weights = [x for x in ltx2rt("inspect", out / "b").out.splitlines() if " weights/" in x]
    assert [x.split(" (")[0].strip() for x in weights] == [
        f"weights {name}" for name in (*fused, "weights/transformer_block")
    ]


def test_a_disk_that_cannot_hold_all_layers_is_refused_first(
    model: dict[str, Path], tmp_path: Path, quantized: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = SimpleNamespace(free=150_000)  # one layer of three
    monkeypatch.setattr("ltx2rt.weights.safetensors_writer.shutil.disk_usage", lambda _: some)
    with unchanged(tmp_path):
        outcome = ltx2rt("build", *build_flags(model), *FP8, "-o", tmp_path / "b")
    expect_user_error(outcome, "transformer_block, which needs", "No space left")
    assert quantized == []


def test_copies_and_all_layers_are_taken_over(
    demo_bundle: Path, model: dict[str, Path], tmp_path: Path, quantized: list[str]
) -> None:
    command = (*build_flags(model), *FP8, "--copy-weights")
    left = files_in(killed_build(demo_bundle, "attach", tmp_path / "b", *command))
    assert f"weights/{model['checkpoint'].name}" in left
    assert ltx2rt("build", *command, "-o", tmp_path / "b").code == 0
    assert quantized == []
    assert files_in(tmp_path / "b") == left
    assert ltx2rt("build", *command, "-o", tmp_path / "whole").code == 0
    assert content(tmp_path / "b") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    ["weights", *(pytest.param(x, marks=pytest.mark.fuzz) for x in CHANGES)],
)
def test_another_build_takes_nothing_over(
    change: str,
    demo_bundle: Path,
    model: dict[str, Path],
    tmp_path: Path,
    quantized: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command: tuple[object, ...] = (*build_flags(model), *FP8)
    work = killed_build(demo_bundle, "quantize", tmp_path / "b", *command)
    count = 3 * LINEARS
    match change:
        case "weights":  # in place, same size, same times
            entry = next(
                e for n, e in SafetensorsFile(model["checkpoint"]).items()
                if n.endswith("transformer_blocks.0.attn1.to_q.weight")
            )  # fmt: skip
            times = model["checkpoint"].stat()
            with model["checkpoint"].open("r+b") as file:
                file.seek(entry.offset)
                file.write(np.ones(8, np.uint8).tobytes())
            os.utime(model["checkpoint"], ns=(times.st_atime_ns, times.st_mtime_ns))
        case "precision":
            command = tuple("int8-wo" if part == "fp8" else part for part in command)
        case "layers":
            command, count = (*command, "--plain-layers", "0"), 2 * LINEARS
        case "lora":
            command += ("--lora", write_demo_lora(tmp_path / "l.safetensors", model, 0))
        case "code":
            monkeypatch.setattr("ltx2rt_export.resume.sources_sha256", lambda: "newer")
    assert ltx2rt("build", *command, "-o", tmp_path / "b").code == 0
    assert len(quantized) == count
    assert not work.exists()
    assert not (tmp_path / "b" / "build.key").exists()
    assert ltx2rt("build", *command, "-o", tmp_path / "whole").code == 0
    assert content(tmp_path / "b") == content(tmp_path / "whole")


def test_the_key_of_weight_files_sees_what_decides_them(
    model: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_model(**model)
    config = BuildConfig(precision="fp8")
    inputs = BuildInputs(checkpoint=str(model["checkpoint"]))
    lora = Lora(path=str(write_demo_lora(tmp_path / "l.safetensors", model, 0)), strength=1.0)
    key = weights_key(files, inputs, config)
    others = [
        weights_key(files, inputs, replace(config, precision="int8-wo")),
        weights_key(files, inputs, replace(config, plain_layers=(0,))),
        weights_key(files, replace(inputs, loras=(lora,)), config),
        weights_key(files, replace(inputs, loras=(replace(lora, strength=0.5),)), config),
    ]
    times = model["checkpoint"].stat()
    os.utime(model["checkpoint"], ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy would
    others.append(weights_key(open_model(**model), inputs, config))
    with monkeypatch.context() as patch:
        patch.setattr("ltx2rt_export.resume.sources_sha256", lambda: "newer")
        others.append(weights_key(files, inputs, config))
    assert len({key, *others}) == 1 + len(others)
    # an option that changes no weight
    assert weights_key(open_model(**model), inputs, replace(config, force=True)) == others[-2]


def test_interrupted_builds_say_how_to_go_on(
    demo_bundle: Path,
    model: dict[str, Path],
    tmp_path: Path,
    quantized: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("build", *build_flags(model), *FP8, "-o", tmp_path / "b")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ltx2rt_export.bundle.attach_overlays", interrupted)
        outcome = ltx2rt(*command)
    (work,) = tmp_path.glob(".b.*.part")
    assert outcome.code == 130
    assert f"3 finished weight files are kept in {work}: repeat the command" in outcome.err
    # nothing else is: no graphs, no tokenizer
    assert sorted(p.name for p in work.iterdir()) == ["build.key", "weights"]
    quantized.clear()
    assert ltx2rt(*command).code == 0
    assert quantized == []
    assert not work.exists()
