"""What does not fit a GPU is refused before anything is loaded or built."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt.cuda import Gpu
from ltx2rt.errors import UnsupportedError
from ltx2rt.manifest import BuildInputs
from ltx2rt.memory import refuse_too_large
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
    monkeypatch.setattr(plan, "plan_build", lambda *_: {"stage_bytes": STAGES})
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
