"""A build looks at the memory of the card that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.device.cuda import Gpu
from ltx2rt.errors import UnsupportedError
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.engines import plan

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
