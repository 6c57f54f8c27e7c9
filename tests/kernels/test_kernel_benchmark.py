"""The kernel benchmark, as far as a machine without a GPU can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.kernels import command, device, record, search, variants
from benchmarks.kernels.cases import CASES, SEARCHED, AttentionCase, RowCase
from benchmarks.kernels.record import Parity, line, make_record
from benchmarks.kernels.report import section
from benchmarks.kernels.roofline import PEAKS, least_seconds, peaks_of
from benchmarks.kernels.variants import Make, Variant
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.flash_attention.spec import CONFIGS

LONG = AttentionCase(head_dim=128, queries=6144, keys=6144)
SHIPPED = CONFIGS[128]["120a"]
GREEN, RED = Parity(error=4e-3, bound=8e-3), Parity(error=float("nan"), bound=8e-3)


def test_cases_are_what_their_names_say() -> None:
    assert len(CASES) == 16
    assert len(SEARCHED) == 3
    assert LONG.name == "attention-128-6144x6144"
    assert LONG.flops == 16384 * 6144**2  # spec/transformer.md §19
    assert LONG.bytes == 4 * 6144 * 8192
    rope = CASES["qk_norm_rope-6144x4096"]
    assert rope == RowCase(operator="qk_norm_rope", tokens=6144, width=4096, elements=5.0)
    assert rope.bytes == 10 * 6144 * 4096


def test_roofline() -> None:
    h200 = peaks_of("NVIDIA H200")
    assert h200 is PEAKS["H200"]
    assert peaks_of("NVIDIA H100 80GB HBM3") is PEAKS["H100"]
    for name in ("H100 PCIe", "H100 NVL", "A100 80GB PCIe", "GH200 480GB"):
        assert peaks_of(f"NVIDIA {name}") is PEAKS[name]
    assert peaks_of("Apple M4") is None
    assert least_seconds(LONG, h200) == pytest.approx(LONG.flops / 989e12)
    assert least_seconds(LONG, h200, eight_bit=True) == pytest.approx(LONG.flops / 1979e12)
    assert least_seconds(LONG, PEAKS["A100"], eight_bit=True) is None
    short = CASES["attention-64-6144x126"]
    assert least_seconds(short, h200) == pytest.approx(short.bytes / 4.8e12)  # memory bound
    rows = CASES["adaln_modulate-6144x4096"]
    assert least_seconds(rows, h200) == pytest.approx(4 * 6144 * 4096 / 4.8e12)


def test_record_and_line() -> None:
    seconds = [0.002] * 10 + [0.001] * 9 + [0.004]
    made = make_record(LONG, "ltx2rt", seconds, GREEN, PEAKS["H100"])
    assert (made["median_s"], made["p10_s"], made["p90_s"]) == (0.002, 0.001, 0.002)
    assert made["tflops"] == pytest.approx(LONG.flops / 0.002 / 1e12)
    assert made["gb_per_s"] == pytest.approx(LONG.bytes / 0.002 / 1e9)
    assert made["roofline"] == pytest.approx(LONG.flops / 989e12 / 0.002)
    assert made["verified"]
    assert "2000.0 us" in line(made)
    assert "31.3 %" in line(made)
    assert "roofline" not in make_record(LONG, "ltx2rt", seconds, GREEN, None)
    unverified = make_record(LONG, "ltx2rt", seconds, RED, None)
    assert not unverified["verified"]
    assert line(unverified).endswith("UNVERIFIED")


def test_parity_is_not_green_for_nan() -> None:
    assert GREEN.green
    assert not RED.green
    assert not Parity(error=9e-3, bound=8e-3).green


class FakeKernels:
    """No GPU: `with Kernels(folder)` without kernels."""

    arch = "90a"

    def __init__(self, folder: Path, artifacts: Path | None = None) -> None: ...

    def __enter__(self) -> FakeKernels:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four variants: one right, one wrong, two that cannot run; returns what was timed."""
    timed: list[str] = []
    want = torch.ones(4)

    def refuse() -> None:
        raise RuntimeError("No available kernel.\nmore")

    def unloadable() -> Variant:
        raise KernelError("kernel k: cuModuleLoadData says CUDA_ERROR_NO_BINARY_FOR_GPU")

    def made(*_: Any) -> dict[str, Make]:
        return {
            "ltx2rt": lambda: Variant(run=lambda: None, result=lambda: (want,), bound=1e-3),
            "ltx2rt fp8": lambda: Variant(run=lambda: None, result=lambda: (2 * want,), bound=1e-1),
            "ltx2rt new": unloadable,
            "torch cudnn": lambda: Variant(run=refuse, result=lambda: (want,), bound=1e-3),
        }

    def time_them(runs: Mapping[str, Any], budget_s: float) -> dict[str, list[float]]:
        timed.extend(runs)
        return {name: [1e-3] * 20 for name in runs}

    monkeypatch.setattr(device, "Kernels", FakeKernels)
    monkeypatch.setattr(device, "time_interleaved", time_them)
    monkeypatch.setattr(variants, "attention_inputs", lambda case: {})
    monkeypatch.setattr(variants, "attention_reference", lambda inputs: (want,))
    monkeypatch.setattr(variants, "attention_variants", made)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return timed


@pytest.mark.parametrize("gate", [True, False])
def test_a_red_variant_is_not_timed(fake_gpu: list[str], tmp_path: Path, gate: bool) -> None:
    unloaded, cudnn, ours, fp8 = command.run_cases([LONG], tmp_path, 1.0, gate=gate)
    assert ours["verified"]
    assert ours["median_s"] == 1e-3
    assert fp8["verified"] is False
    assert cudnn == {
        "case": LONG.name,
        "variant": "torch cudnn",
        "skipped": "cannot run: No available kernel.",
    }
    assert unloaded == {
        "case": LONG.name,
        "variant": "ltx2rt new",
        "skipped": "cannot run: kernel k: cuModuleLoadData says CUDA_ERROR_NO_BINARY_FOR_GPU",
        "verified": False,
    }
    if gate:
        assert fake_gpu == ["ltx2rt"]
        assert "median_s" not in fp8
        assert "error 1.0e+00, allowed 1e-01" in fp8["skipped"]
    else:
        assert fake_gpu == ["ltx2rt", "ltx2rt fp8"]
        assert fp8["median_s"] == 1e-3


def test_command_records_and_exits_with_the_gate(
    fake_gpu: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "why_not", lambda: None)
    monkeypatch.setattr(command, "gpu_facts", lambda: {"name": "NVIDIA H200"})
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert command.main(["--case", LONG.name]) == 1
    lines = (tmp_path / "kernels.jsonl").read_text().splitlines()
    records = [json.loads(text) for text in lines]
    assert [r["variant"] for r in records] == [
        *("ltx2rt new", "torch cudnn", "ltx2rt", "ltx2rt fp8"),
    ]
    assert records[0]["environment"]["gpu"] == {"name": "NVIDIA H200"}
    out = capsys.readouterr()
    assert out.out.splitlines()[-1] == lines[-1]
    assert f"cannot run: {LONG.name} ltx2rt new, {LONG.name} ltx2rt fp8" in out.err
    table = section(tmp_path / "kernels.jsonl")[-2:]
    assert table[0].startswith(f"| NVIDIA H200 | {LONG.name} | ltx2rt | 1000.0 | 1000.0, 1000.0 |")
    assert table[0].endswith("| 0.0e+00 |")
    assert "not timed: error 1.0e+00" in table[1]
    assert section(tmp_path / "none.jsonl")[-1].startswith("Not measured: `python -m")
    assert command.main(["--case", LONG.name, "--no-record"]) == 1
    assert len((tmp_path / "kernels.jsonl").read_text().splitlines()) == 4


def test_what_does_not_fit_is_a_record_and_the_next_case_runs(
    fake_gpu: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inputs(case: AttentionCase) -> dict[str, torch.Tensor]:
        if case is LONG:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return {}

    monkeypatch.setattr(variants, "attention_inputs", inputs)
    cases = [LONG, CASES["attention-128-768x768"]]
    records = list(command.run_cases(cases, tmp_path, 1.0, gate=True, without=["ltx2rt new"]))
    assert [r["variant"] for r in records] == ["all", "torch cudnn", "ltx2rt", "ltx2rt fp8"]
    assert records[0]["skipped"] == "cannot run: CUDA out of memory."
    assert records[0]["verified"] is False
    late = list(command.run_cases(cases, tmp_path, 1.0, gate=True, limit_s=-1.0))
    assert [r["skipped"] for r in late] == ["not run: -1 s are over"] * 2


def test_a_lost_gpu_gets_a_new_process(
    fake_gpu: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The variant that broke it stays out; what was recorded is kept."""
    commands: list[list[str]] = []
    monkeypatch.setattr(command, "why_not", lambda: None)
    monkeypatch.setattr(command, "gpu_facts", lambda: {"name": "NVIDIA H200"})
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(device, "answers", lambda: False)

    def note(arguments: list[str], *, check: bool) -> SimpleNamespace:
        commands.append(arguments)
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(command.subprocess, "run", note)
    monkeypatch.setattr(command, "environment", dict)
    names = ["attention-128-768x768", LONG.name]
    flags = [f"--case={name}" for name in names]
    assert command.main([*flags, "--no-gate", "--limit-s=1000"]) == 2
    (record,) = map(json.loads, (tmp_path / "kernels.jsonl").read_text().splitlines())
    assert (record["variant"], record["gpu_lost"]) == ("ltx2rt new", True)
    (again,) = commands
    assert again[1:4] == ["-m", "benchmarks.run", "kernels"]
    assert again[4:7] == [*flags, "--without=ltx2rt new"]
    assert again[8:] == ["--budget-s=180.0", "--no-gate"]
    assert 0 < float(again[7].removeprefix("--limit-s=")) <= 1000
    # in the timing of several nobody knows which: on with the next case
    monkeypatch.setattr(device, "time_interleaved", unloadable_timing)
    flags += ["--without=ltx2rt new", "--without=torch cudnn"]
    assert command.main(flags) == 2
    assert commands[1][4:8] == [
        f"--case={LONG.name}",
        *("--without=ltx2rt new", "--without=torch cudnn", "--without=all"),
    ]
    assert capsys.readouterr().err.count("a new one goes on") == 2


def unloadable_timing(runs: Mapping[str, Any], budget_s: float) -> dict[str, list[float]]:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_sentence_and_nothing_else() -> None:
    results = Path(record.__file__).parents[1] / "results"
    before = {p: p.read_bytes() for p in results.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "kernels"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "needs an NVIDIA GPU" in done.stderr
    assert {p: p.read_bytes() for p in results.iterdir()} == before


def test_unknown_cases_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--case", "attention-1"])
    assert "no case attention-1; there are: attention-128-768x768" in capsys.readouterr().err


def test_search_tries_what_the_kernels_can_be() -> None:
    for eight_bit in (False, True):
        made = search.candidates(SHIPPED, eight_bit=eight_bit)
        assert made[0] == SHIPPED
        assert len({search.as_line(c) for c in made}) == len(made) > 10
        assert all(c.tiles["FULL_BLOCK_N"] <= c.tiles["BLOCK_N"] for c in made)
        assert max(c.tiles["FULL_BLOCK_N"] for c in made) == 16  # larger ones spill there
        assert max(c.tiles["BLOCK_N"] for c in made) == (64 if eight_bit else 128)
    assert search.as_line(SHIPPED) == "Config(num_warps=8, num_stages=2, tiles=tiles(128, 64, 16))"


def test_search_keeps_the_fastest_and_counts_what_fails(
    fake_gpu: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([3e-3, KernelError("kernel k: cuLaunchKernel says CUDA_ERROR_X"), 2e-3, None])

    def time_one(*_: Any) -> dict[str, Any] | None:
        found = next(times, None)
        if isinstance(found, KernelError):
            raise found
        return None if found is None else make_record(LONG, "v", [found] * 20, GREEN, None)

    monkeypatch.setattr(search, "_time", time_one)
    monkeypatch.setattr(FakeKernels, "forget", lambda self, spec: None, raising=False)
    plain, eight_bit = search.search([LONG], tmp_path, 1000.0)
    assert (plain["median_s"], plain["shipped_median_s"]) == (2e-3, 3e-3)
    assert (plain["tried"], plain["failed"]) == (2, 1)
    assert plain["config"].startswith("Config(num_warps=")
    assert eight_bit["skipped"].startswith("no configuration passes")
