"""What does not fit a GPU is refused before anything is loaded or built."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.bundle.memory import (
    denoise_reserve,
    layer_bytes,
    refuse_too_large,
    stage_weight_bytes,
)
from ltx2rt.device.cuda import Gpu
from ltx2rt.errors import UnsupportedError
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.engines import plan

STAGES = {"encode prompt": 3 << 30, "denoise": 40 << 30}


def test_the_largest_stage_decides() -> None:
    refuse_too_large(STAGES, "weights", Gpu("a card", "sm90", 40 << 30))
    refuse_too_large({}, "weights", Gpu("a card", "sm90", 0))
    with pytest.raises(UnsupportedError, match=r"'denoise' takes 40\.0 GiB of weights.*24\.0 GiB"):
        refuse_too_large(STAGES, "weights", Gpu("a card", "sm89", 24 << 30))


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


def test_a_small_gpu_holds_one_layer_at_a_time(demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    layers = layer_bytes(manifest.components["transformer_block"])
    most = stage_weight_bytes(manifest)
    least = stage_weight_bytes(manifest, least=True)
    assert most["denoise"] - least["denoise"] == sum(layers) - max(layers) > 0
    assert {s: n for s, n in most.items() if s != "denoise"} == {
        s: n for s, n in least.items() if s != "denoise"
    }
    upsampler = sum(layer_bytes(manifest.components["spatial_upsampler"]))
    assert denoise_reserve(manifest) == (2 << 30) + upsampler + max(layers)
