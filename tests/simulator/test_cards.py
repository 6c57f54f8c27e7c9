"""Pipelines on cards of many sizes: each finishes, with the numbers of the largest, or was refused
before it began; none runs out of memory in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.bundle import card
from ltx2rt.bundle.memory_plan import MemoryPlan
from ltx2rt.bundle.stage_plan import plan_card_memory
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import UnsupportedError
from ltx2rt.results.clip import Clip
from tests.parity.media_files import video_file
from tests.simulator.driver import Setup, simulated
from tests.simulator.fixtures import EngineBundle
from tests.simulator.least_memory import least_memory_of

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = [pytest.mark.usefixtures("tensorrt_rtx", "kernels"), pytest.mark.simulator_matrix]

#: GiB of cards; the demo model fits as closely on the one of 16 as it can
CARDS = (12, 14, 16, 24, 32, 48, 80, 141)
#: what a card does with a bundle, the less room the earlier
DOES = ("refuses", "one stage at a time", "layers take turns", "all stays")
SIZE = {"height": 64, "width": 64, "num_frames": 9}
GUIDANCE = ltx2rt.GuidanceConfig(num_inference_steps=2)

Make = Callable[[ltx2rt.Bundle, RuntimeConfig, Path], list[Clip]]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


def from_text(bundle: ltx2rt.Bundle, runtime: RuntimeConfig, _: Path) -> list[Clip]:
    with ltx2rt.DistilledPipeline(bundle, runtime) as pipe:
        return decoded(pipe(prompt="a bell", seed=3, **SIZE))


def from_image(bundle: ltx2rt.Bundle, runtime: RuntimeConfig, folder: Path) -> list[Clip]:
    pixels = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    image = ltx2rt.ImageCondition(path=folder / "image.png")
    with ltx2rt.OneStagePipeline(bundle, runtime) as pipe:
        return decoded(pipe(prompt="a bell", images=(image,), guidance=GUIDANCE, **SIZE))


def to_sound(bundle: ltx2rt.Bundle, runtime: RuntimeConfig, _: Path) -> list[Clip]:
    with ltx2rt.TextToAudioPipeline(bundle, runtime) as pipe:
        return decoded(pipe(prompt="a bell", num_frames=9, guidance=GUIDANCE))


def from_video(bundle: ltx2rt.Bundle, runtime: RuntimeConfig, folder: Path) -> list[Clip]:
    source = video_file(folder / "clip.mp4", 9)
    with ltx2rt.RetakePipeline(bundle, runtime) as pipe:
        return decoded(pipe(prompt="a bell", video=source, start_time=0.1, end_time=0.3))


def several(bundle: ltx2rt.Bundle, runtime: RuntimeConfig, _: Path) -> list[Clip]:
    made: list[Clip] = []
    with ltx2rt.DistilledPipeline(bundle, runtime) as pipe:
        for clip in pipe.generate_many([1, 2], prompt="a bell", **SIZE):
            made += decoded(clip)
    return made


def decoded(clip: Clip) -> list[Clip]:
    """The clip, once its frames and sound were made."""
    for _ in clip.frames:
        pass
    assert np.isfinite(clip.audio).all()
    return [clip]


def latents(clips: list[Clip]) -> Mapping[str, Array]:
    return {f"{i} {k}": v for i, clip in enumerate(clips) for k, v in clip.latents.items()}


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[MemoryPlan]:
    """Of every card that is opened."""
    made: list[MemoryPlan] = []

    def planned(*arguments: Any, **options: Any) -> MemoryPlan:
        made.append(plan_card_memory(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(card, "plan_card_memory", planned)
    return made


def what_it_does(plan: MemoryPlan) -> str:
    if plan.stages:
        return "one stage at a time"
    return "layers take turns" if plan.streams else "all stays"


@pytest.mark.parametrize("residency", ["stage", "resident"])
@pytest.mark.parametrize("make", [from_text, from_image, to_sound, from_video, several])
def test_every_card_runs_it_or_is_refused(
    engine_bundle: EngineBundle,
    tmp_path: Path,
    plans: list[MemoryPlan],
    make: Make,
    residency: str,
) -> None:
    bundle = engine_bundle("bf16")
    least = least_memory_of(bundle)
    outcomes: dict[int, Mapping[str, Array]] = {}
    did = dict.fromkeys(CARDS, "refuses")
    for gib in CARDS:
        with simulated(Setup(memory_bytes=least * gib // 16)) as gpu:
            opened, runtime = ltx2rt.open_bundle(bundle), RuntimeConfig(residency=residency)
            try:
                outcomes[gib] = latents(make(opened, runtime, tmp_path))
            except UnsupportedError:
                assert gpu.counters().launches == 0
                continue
            assert gpu.problems() == []
            assert gpu.counters().live_bytes == 0
            did[gib] = what_it_does(plans[-1])
    assert 12 not in outcomes
    assert {48, 80, 141} <= outcomes.keys()
    if residency == "stage":
        assert (did[14], did[16]) == DOES[1:3]
    assert [DOES.index(did[gib]) for gib in CARDS] == sorted(map(DOES.index, did.values())), did
    for found in outcomes.values():
        assert found.keys() == outcomes[141].keys()
        for name, latent in outcomes[141].items():
            np.testing.assert_array_equal(found[name], latent, err_msg=name)
