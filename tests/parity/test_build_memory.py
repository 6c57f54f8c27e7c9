"""A build looks at the memory of the card that it is for; its plan, at that of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.host_plan import plan_host
from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.bundle.memory import stage_weight_bytes
from ltx2rt.device.cuda import Gpu
from ltx2rt.errors import UnsupportedError
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.bundle import inputs_in, open_inputs
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.engines import plan
from ltx2rt_export.engines.plan_text import plan_text

STAGES = {"encode prompt": 3 << 30, "denoise": 40 << 30}


def test_builds_for_this_gpu_look_at_its_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan, "load", lambda backend: None)
    monkeypatch.setattr(plan, "plan_build", lambda *_: {"least_stage_bytes": STAGES})
    monkeypatch.setattr(plan, "local_gpu", lambda purpose: Gpu("a card", "sm89", 24 << 30))
    files: ModelFiles = object()  # type: ignore[assignment]
    here = BuildConfig(backend="tensorrt", precision="bf16")
    with pytest.raises(UnsupportedError, match="weights and activations, and a card has"):
        plan.check_card(files, BuildInputs(), here)
    elsewhere = BuildConfig(backend="tensorrt-rtx", precision="bf16")
    plan.check_card(files, BuildInputs(), elsewhere)  # for cards that are not here


def test_default_targets_run_the_precision() -> None:
    assert BuildConfig(backend="tensorrt-rtx", precision="fp8").targets == ("sm89", "sm120")
    assert BuildConfig(backend="tensorrt-rtx", precision="nvfp4").targets == ("sm120",)


def test_the_plan_for_a_cpu_says_what_the_runtime_will_do(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(demo_bundle).manifest
    inputs = inputs_in(manifest.build, demo_bundle)
    files = open_inputs(inputs)
    held, most = stage_weight_bytes(manifest), 1 << 40

    def text(memory: int, precision: str = "fp32", weights: str = "input") -> str:
        monkeypatch.setattr(plan, "machine_bytes", lambda: memory)
        config = BuildConfig(precision=precision, weights=weights, components=parts)
        report = plan.plan_build(files, inputs, config)
        kept = report["host"]["kept_layers"]
        assert kept == plan_host(manifest, memory, resident=False).kept
        report["stage_bytes"] = dict.fromkeys(report["stage_bytes"], 1)  # of toys: activations
        return plan_text(report)

    parts = tuple(n for n in manifest.components if not n.startswith("text_"))
    assert "fits: a CPU, or an NVIDIA GPU" in text(most)
    layers = plan_host(manifest, most, resident=False).layers
    assert "1 of the 3 layers of the transformer stay" in text(
        (held["denoise"] - sum(layers[2:])) * 4 // 3 + 8
    )
    assert "fits: a CPU\n" in text(most, "int8")
    assert "fits: a CPU\n" in text(most, weights="constant")
    monkeypatch.setattr(plan, "machine_bytes", lambda: 1 << 20)
    report = plan.plan_build(files, inputs, BuildConfig(components=parts))
    assert report["host"]["kept_layers"] is None
    assert "TOO LITTLE for one layer of the transformer" in plan_text(report)
    monkeypatch.setattr(plan, "machine_bytes", lambda: most)
    report = plan.plan_build(files, inputs, BuildConfig(components=parts))
    report["stage_bytes"]["decode"] = 2 * most
    assert "TOO LITTLE to decode" in plan_text(report)
    half = plan.plan_build(files, inputs, BuildConfig(precision="bf16", components=parts))
    assert "fits: an NVIDIA GPU" in plan_text(half)
