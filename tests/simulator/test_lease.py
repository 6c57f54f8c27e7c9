"""The script for a lent GPU, as far as it runs without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import ltx2rt
from benchmarks.lease import __main__ as lease
from benchmarks.lease import answers, block, pack
from benchmarks.lease.steps import NAMES, STEPS, Step
from tests.simulator.fixtures import Simulate
from tests.simulator.onnxruntime_cuda import use_simulated_cuda

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
ROOT = Path(__file__).parents[2]


def test_the_script_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    """What can run does; the rest says why not; the table comes last."""
    steps = ("environment", "device", "onnxruntime", "noise", "racecheck")
    only = [part for name in steps for part in ("--only", name)]
    done = subprocess.run(
        ["bash", "benchmarks/lease.sh", *only, "--pack", tmp_path / "pack"],
        cwd=ROOT,
        env={**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/lease.jsonl").read_text().splitlines()]
    assert {row["step"]: row["state"] for row in rows} == {
        "environment": "ran",
        "device": "skipped",
        "onnxruntime": "skipped",
        "noise": "ran",
        "racecheck": "skipped",
    }
    assert "no NVIDIA driver" in done.stdout
    assert "the pack has no block.onnx" in done.stdout
    assert (tmp_path / "out/lease.txt").read_text() == done.stdout


@pytest.mark.parametrize(
    ("code", "state", "says"),
    [
        ("print('{\"a\": 1}'); print('fine')", "ran", "fine"),
        ("print('{\"a\": 1}'); print('bad'); exit(1)", "failed", "bad"),
        ("print('{\"a\": 1}'); print('no GPU'); exit(3)", "skipped", "no GPU"),
        ("print('{\"a\": 1}', flush=True); import time; time.sleep(60)", "stopped", ""),
    ],
)
def test_steps_end_alone(code: str, state: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(name="x", question="?", command=(), limit_s=60.0)
    command = [sys.executable, "-c", code]
    assert lease.run(step, command, 9.0, None)["says"] == "the time is over"
    monkeypatch.setattr(lease, "LEAST_S", 0.0)
    row = lease.run(step, command, 2.0 if state == "stopped" else 60.0, None)
    assert (row["state"], row["says"], row["results"]) == (state, says, [{"a": 1}])


def test_the_steps_fit_into_one_call() -> None:
    assert len(set(NAMES)) == len(STEPS) == 10
    assert all(s.limit_s <= lease.BUDGET_S for s in STEPS)


def test_wheels_travel_in_pieces(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "VALUE = 7\n" + "#" * 5000)
    pack.pack_wheels([wheel], tmp_path, piece_bytes=1000)
    pieces = sorted(tmp_path.glob("*.whl.*"))
    assert len(pieces) == -(-wheel.stat().st_size // 1000)
    site = pack.install(tmp_path, tmp_path / "site")
    assert site is not None
    assert (site / "thing/__init__.py").read_text().startswith("VALUE = 7")
    assert lease._is_there("thing", site)
    pieces[0].write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="not what was packed"):
        pack.install(tmp_path, tmp_path / "other")
    assert pack.install(tmp_path / "nothing", tmp_path / "none") is None


def test_the_device_answer(simulate: Simulate, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(memory_bytes=1 << 30)
    assert answers.main(["device", "--pack", "none"]) == 0
    assert "copies, events and a graph are right" in capsys.readouterr().out


def test_the_onnxruntime_answer(
    simulate: Simulate,
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The demo model's block in place of one at real width."""
    bundle = ltx2rt.open_bundle(demo_bundle)
    entry = bundle.component("transformer_block")
    (tmp_path / block.GRAPH).write_bytes((demo_bundle / entry.graph).read_bytes())
    spec: dict[str, Any] = {
        way: [[t.name, t.dtype, list(t.shape)] for t in tensors]
        for way, tensors in (("inputs", entry.inputs), ("outputs", entry.outputs))
    }
    (tmp_path / block.SPEC).write_text(json.dumps(spec))
    monkeypatch.setattr(block, "SIZES", {**block.SIZES, "Tv": 24, "Ta": 6})
    monkeypatch.setattr(block, "CHECKED", {**block.SIZES, "Tv": 16, "Ta": 6})
    simulate(memory_bytes=1 << 30)
    use_simulated_cuda(monkeypatch)
    assert answers.main(["onnxruntime", "--pack", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[0])
    assert result["rel_rms_to_cpu"] < 1e-6
