"""A card that has no room for all stages at once: each has it alone, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.backends.engine_needs import EngineNeeds, engine_needs
from ltx2rt.bundle.card_plan import needs_of
from ltx2rt.bundle.manifest import Manifest
from ltx2rt.bundle.memory_plan import weight_bytes
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.engine import Array
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.names import AUDIO_DECODER, AUDIO_ENCODER, VOCODER
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.bundle import inputs_in, open_inputs
from ltx2rt_export.engines import plan
from ltx2rt_export.engines.card_estimate import stage_room
from tests.parity.command_line import ltx2rt as ltx2rt_command
from tests.simulator.driver import Setup, simulated
from tests.simulator.fixtures import EngineBundle
from tests.simulator.least_memory import least_memory_of

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx")

#: of a card that has room for all stages: what the largest stage takes alone
SHARE = 0.82


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ltx2rt.ImageCondition:
    """A first frame; compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    pixels = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return ltx2rt.ImageCondition(path=tmp_path / "image.png")


def test_stages_take_turns(engine_bundle: EngineBundle, image: ltx2rt.ImageCondition) -> None:
    bundle = engine_bundle("bf16")
    small = int(least_memory_of(bundle) * SHARE)

    def made(pipe: ltx2rt.DistilledPipeline, seed: int) -> ltx2rt.Clip:
        return pipe(prompt="a bell", seed=seed, images=(image,), height=64, width=64, num_frames=9)

    def decoded(clip: ltx2rt.Clip) -> Mapping[str, Array]:
        return {**clip.latents, "frames": np.concatenate(list(clip.frames)), "audio": clip.audio}

    with simulated(Setup(memory_bytes=1 << 30)):
        with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle)) as pipe:
            want = decoded(made(pipe, 2))
    with simulated(Setup(memory_bytes=small)) as gpu:
        with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle)) as pipe:
            first = made(pipe, 1)
            frames = iter(first.frames)
            next(frames)
            with pytest.raises(OptionError, match="room for one stage at a time: decode the clip"):
                made(pipe, 2)
            del frames  # nobody wants the rest
            found = decoded(made(pipe, 2))
        assert gpu.problems() == []
        assert gpu.counters().live_bytes == 0
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_doctor_says_so(engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16")
    least = least_memory_of(bundle)
    outcome = ltx2rt_command("doctor", bundle, "--memory", f"{int(least * SHARE) >> 10}KiB")
    assert outcome.code == 0, outcome.err
    assert "there is room for one stage at a time; while it denoises:" in outcome.out
    assert "stage 'encode prompt': activations" in outcome.out
    with simulated(Setup(memory_bytes=least // 2)):
        refused = ltx2rt_command("doctor", bundle, "--memory", f"{least >> 11}KiB")
        assert refused.code == 2
        assert "while it encodes prompts" in refused.err
        resident = ltx2rt.RuntimeConfig(residency="resident")
        with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle), resident) as pipe:
            with pytest.raises(UnsupportedError, match="keep less loaded: residency stage"):
                pipe(prompt="a bell", height=64, width=64, num_frames=9)


def test_inputs_and_outputs_are_known_without_the_library(engine_bundle: EngineBundle) -> None:
    bundle = ltx2rt.open_bundle(engine_bundle("bf16"))
    found = needs_of(bundle.folder, bundle.manifest)
    with simulated(Setup(memory_bytes=1 << 30)):
        device = CudaDevice("a test")
        for name, entry in bundle.manifest.components.items():
            want = engine_needs(bundle.folder / entry.engines[0].file, entry.spec(name))
            if name not in (AUDIO_DECODER, AUDIO_ENCODER, VOCODER):  # whose are small
                assert found[name].tensors == want.tensors, name
        device.close()


@pytest.mark.parametrize(
    "precision", ["bf16", pytest.param("fp8", marks=pytest.mark.simulator_matrix)]
)
def test_a_dry_run_is_the_plan_of_what_is_built(
    precision: str, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It plans from headers what the files beside engines say afterwards; activations, which both
    estimate from other graphs of this model, are taken from those files.
    """
    bundle = ltx2rt.open_bundle(engine_bundle(precision))
    manifest, needs = bundle.manifest, needs_of(bundle.folder, bundle.manifest)
    rooms = []

    def seen(planned: Manifest, found: dict[str, EngineNeeds], *, least: bool) -> dict[str, int]:
        assert found.keys() == needs.keys()
        small = (AUDIO_DECODER, AUDIO_ENCODER, VOCODER)
        for name, need in needs.items():
            sizes = [weight_bytes(m.components[name]) for m in (planned, manifest)]
            # scales of quantised weights are not counted: nothing, but of a toy
            assert sizes[0] == pytest.approx(sizes[1], rel=0.05 if "block" in name else 0)
            assert name in small or found[name].tensors == need.tensors, name
        rooms.append((stage_room(planned, needs, least=least), least))
        return stage_room(planned, found, least=least)

    monkeypatch.setattr(plan, "stage_room", seen)
    inputs = inputs_in(manifest.build, bundle.folder)
    config = BuildConfig(backend="tensorrt-rtx", precision=precision, shapes=("64x64x9",))
    report = plan.plan_build(open_inputs(inputs), inputs, config)
    for room, least in rooms:
        assert room == pytest.approx(stage_room(manifest, needs, least=least), rel=0.01)
    assert [least for _, least in rooms] == [False, True]
    assert report["streaming_card"] == report["card"] == "RTX 4060 (8 GiB)"
    assert report["least_stage_bytes"]["denoise"] < report["stage_bytes"]["denoise"]
