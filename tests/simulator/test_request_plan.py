"""A GPU without room for the largest clip of a bundle is planned for the request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt
from ltx2rt.bundle import card
from ltx2rt.bundle.manifest import Manifest
from ltx2rt.bundle.memory_plan import MemoryPlan
from ltx2rt.bundle.stage_plan import plan_card_memory
from ltx2rt.engine import Array
from ltx2rt.errors import UnsupportedError
from tests.simulator.driver import Setup, simulated
from tests.simulator.fixtures import EngineBundle, Simulate

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx", "kernels")

SHORT = {"height": 64, "width": 64, "num_frames": 1}
SMALL = {"height": 64, "width": 64, "num_frames": 9}
LARGE = {"height": 256, "width": 256, "num_frames": 33}
#: enough for the small one, not for all that a bundle of both was built for
MEMORY = 60 << 20


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


def make(pipe: ltx2rt.OneStagePipeline, size: Mapping[str, int]) -> ltx2rt.Clip:
    once = ltx2rt.GuiderParams()  # one pass
    guidance = ltx2rt.GuidanceConfig(num_inference_steps=1, video=once, audio=once)
    return pipe(prompt="a bell", seed=3, guidance=guidance, **size)


def decoded(clip: ltx2rt.Clip) -> dict[str, Array]:
    return {**clip.latents, "frames": np.concatenate(list(clip.frames)), "audio": clip.audio}


def assert_same(found: Mapping[str, Array], want: Mapping[str, Array]) -> None:
    assert found.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.simulator_matrix
def test_a_small_clip_where_the_largest_is_refused(engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16", "--shapes", "64x64x9,256x256x33")
    with simulated(Setup(memory_bytes=1 << 30)):
        with ltx2rt.OneStagePipeline(ltx2rt.open_bundle(bundle)) as pipe:
            want = decoded(make(pipe, SMALL))
    with simulated(Setup(memory_bytes=MEMORY)) as gpu:
        with ltx2rt.OneStagePipeline(ltx2rt.open_bundle(bundle)) as pipe:
            for _ in range(2):
                with pytest.raises(UnsupportedError, match="make a smaller clip"):
                    make(pipe, LARGE)
                clip = make(pipe, SMALL)
                assert_same(decoded(clip), want)
                assert not clip.job.host_work
        assert gpu.problems() == []
        assert gpu.counters().live_bytes == 0


def test_requests_of_other_sizes_are_planned_anew(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while something is loaded, and not for one that is no larger."""
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    whole = ltx2rt.open_bundle(bundle).manifest
    plans: list[MemoryPlan] = []

    def planned(manifest: Manifest, *arguments: Any, **options: Any) -> MemoryPlan:
        if manifest == whole:
            raise UnsupportedError("there is no room for all of it")
        plans.append(plan_card_memory(manifest, *arguments, **options))
        return plans[-1]

    monkeypatch.setattr(card, "plan_card_memory", planned)
    with ltx2rt.OneStagePipeline(ltx2rt.open_bundle(bundle)) as pipe:
        frames = iter(make(pipe, SHORT).frames)
        assert not pipe.engines.picture_is_apart()  # the next clip waits for its plan
        next(frames)
        with pytest.raises(UnsupportedError, match=r"planned for a smaller clip.* no room for all"):
            make(pipe, SMALL)
        assert not list(frames)
        for size in (SMALL, SHORT):
            assert all(np.isfinite(latent).all() for latent in make(pipe, size).latents.values())
    assert len(plans) == 2
    assert plans[0].total < plans[1].total
    assert gpu.counters().live_bytes == 0
