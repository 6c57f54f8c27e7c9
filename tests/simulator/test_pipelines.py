"""The distilled pipeline through the device code on the simulated GPU, with real numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt
from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.bundle.memory_plan import STACKS
from ltx2rt.config import RuntimeConfig
from ltx2rt.device import staging
from ltx2rt.engine import Array
from ltx2rt.media.color import rgb_to_i420
from tests.simulator.driver import Setup, simulated
from tests.simulator.fixtures import EngineBundle, Simulate
from tests.simulator.host_twin import use_host_engines
from tests.simulator.least_memory import least_memory_of
from tests.tolerances import SIMULATED_LATENT_REL_L2

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")

#: weights of the demo model stay on a card of this size; 0: the smallest that the plan takes, where
#: layers go up at every use
ROOM, NO_ROOM = 8 << 30, 0

#: the transformer in 16 bits, the text encoder in 4
TEXT_INT4 = "bf16 --text-precision int4-wo"

MATRIX = pytest.mark.simulator_matrix


@dataclass(frozen=True)
class Outcome:
    latents: Mapping[str, Array]
    frames: Array
    packed: Array
    waveform: Array


def make_clip(bundle: Path, runtime: RuntimeConfig | None = None) -> Outcome:
    source = ltx2rt.open_bundle(bundle)
    runtime = runtime or RuntimeConfig(threads=1)
    with ltx2rt.DistilledPipeline(source, runtime) as pipe:
        clip = pipe(prompt="a bell rings", height=64, width=64, num_frames=9, seed=3)
        frames = np.concatenate(list(clip.frames))
        packed = as_i420(clip.frames_as("i420"))
        return Outcome(dict(clip.latents), frames, packed, np.asarray(clip.audio))


def as_i420(chunks: Iterator[Array]) -> Array:
    """As the encoder gets them, wherever they became bytes."""
    return np.concatenate([c if c.ndim == 3 else rgb_to_i420(c)[0] for c in chunks])


@pytest.fixture(scope="module")
def reference(demo_bundle: Path) -> Outcome:
    """By ONNX Runtime, float32."""
    return make_clip(demo_bundle)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


def assert_equal(found: Outcome, expected: Outcome) -> None:
    assert found.latents.keys() == expected.latents.keys()
    for name, latent in expected.latents.items():
        np.testing.assert_array_equal(found.latents[name], latent, err_msg=name)
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_array_equal(found.packed, expected.packed)
    np.testing.assert_array_equal(found.waveform, expected.waveform)


def assert_close(found: Outcome, expected: Outcome, precision: str) -> None:
    for name, latent in expected.latents.items():
        if not name.startswith("upsampled"):  # of 1x1 pixels: the tiny upsampler is chaotic there
            error = np.linalg.norm(found.latents[name] - latent) / np.linalg.norm(latent)
            assert error <= SIMULATED_LATENT_REL_L2[precision].bound, (name, error)
    assert found.frames.shape == expected.frames.shape
    assert found.waveform.shape == expected.waveform.shape


@pytest.mark.parametrize(
    ("precision", "memory", "residency", "schedule"),
    [
        ("fp32", NO_ROOM, "stage", "adversarial"),
        ("bf16", ROOM, "resident", "adversarial"),
        pytest.param("fp32", ROOM, "resident", "newest_first", marks=MATRIX),
        pytest.param("bf16", NO_ROOM, "stage", "random", marks=MATRIX),
        pytest.param("bf16", ROOM, "stage", "in_order", marks=MATRIX),
        pytest.param("fp16", ROOM, "stage", "adversarial", marks=MATRIX),
        pytest.param("fp8", NO_ROOM, "stage", "adversarial", marks=MATRIX),
        pytest.param("fp8", ROOM, "resident", "random", marks=MATRIX),
        pytest.param("int8-wo", ROOM, "stage", "adversarial", marks=MATRIX),
        pytest.param("int4-wo", ROOM, "stage", "adversarial", marks=MATRIX),
        pytest.param(TEXT_INT4, NO_ROOM, "stage", "adversarial", marks=MATRIX),
    ],
)
@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_the_device_gives_what_the_host_gives(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    reference: Outcome,
    precision: str,
    memory: int,
    residency: str,
    schedule: str,
) -> None:
    bundle = engine_bundle(*precision.split())
    gpu = simulate(memory_bytes=memory or least_memory_of(bundle), schedule=schedule)
    alone: set[str] = set()  # weights of engines that are no part of a stack
    weight = DeviceMemory.weight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DeviceMemory, "weight", lambda m, name, array: alone.add(name) or weight(m, name, array)
        )
        found = make_clip(bundle, RuntimeConfig(threads=1, residency=residency))
    stacked = {n for stack in STACKS for n in stack.components}
    layers = {w for n, e in read_manifest(bundle).components.items() if n in stacked
              for layer in e.layers for w in layer}  # fmt: skip
    assert alone
    assert not alone & layers, "these are planned among the weights of layers"
    counters = gpu.counters()
    assert counters.launches >= 11 * (2 + 3)  # head, three layers, tail: 8 + 3 steps
    assert counters.live_bytes == 0
    assert counters.allocations == counters.frees
    with pytest.MonkeyPatch.context() as patch:
        use_host_engines(patch)
        assert_equal(found, make_clip(bundle))
    assert gpu.counters().launches == counters.launches
    assert_close(found, reference, precision)


def written(bundle: Path, residency: str) -> list[Array]:
    """Scores of a few tokens, after a clip: what that has loaded is in the way."""
    runtime = RuntimeConfig(threads=1, residency=residency)
    with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle), runtime) as pipe:
        pipe(prompt="a bell", height=64, width=64, num_frames=9)
        chat = pipe.engines.tokenizer().chat("a bell rings")
        with pipe.engines.language_model() as model:
            return [model.scores([*chat, *range(200, 200 + n)]) for n in range(3)]


@pytest.mark.parametrize(
    ("memory", "residency"),
    [pytest.param(NO_ROOM, "stage", marks=MATRIX), (ROOM, "resident")],
)
@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_a_prompt_is_written_on_the_device(
    simulate: Simulate, engine_bundle: EngineBundle, memory: int, residency: str
) -> None:
    """The layers of the text encoder stay while it writes, or take turns where there is no room."""
    bundle = engine_bundle("fp32")
    gpu = simulate(memory_bytes=memory or least_memory_of(bundle))
    found = written(bundle, residency)
    assert gpu.counters().live_bytes == 0
    with pytest.MonkeyPatch.context() as patch:
        use_host_engines(patch)
        np.testing.assert_array_equal(found, written(bundle, residency))
    assert not np.array_equal(found[0], found[1])


def make_guided(bundle: Path, residency: str = "stage", **options: Any) -> Mapping[str, Array]:
    """Latents of a guided clip: four passes a step, each of its own kind. Nothing is rescaled:
    that is summed in float32 on a device, in float64 on the host.
    """
    runtime = RuntimeConfig(threads=1, residency=residency, **options)
    params = ltx2rt.GuiderParams(cfg_scale=3.0, stg_scale=1.0, stg_blocks=(1,), modality_scale=3.0)
    guidance = ltx2rt.GuidanceConfig(num_inference_steps=3, video=params, audio=params)
    with ltx2rt.OneStagePipeline(ltx2rt.open_bundle(bundle), runtime) as pipe:
        clip = pipe(prompt="a bell", height=64, width=64, num_frames=9, seed=3, guidance=guidance)
        np.concatenate(list(clip.frames))
        return dict(clip.latents)


@MATRIX
@pytest.mark.parametrize("residency", ["stage", "resident"])
@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_kinds_of_passes_at_every_size_of_card(engine_bundle: EngineBundle, residency: str) -> None:
    """A run finishes, with the numbers of the host, or was refused before it began."""
    bundle = engine_bundle("bf16")
    with pytest.MonkeyPatch.context() as patch:
        use_host_engines(patch)
        want = make_guided(bundle)
    least, outcomes = least_memory_of(bundle), []
    for memory in (least // 2, least - (1 << 20), least, least + (1 << 20), 2 * least, 8 << 30):
        with simulated(Setup(memory_bytes=memory)) as gpu:
            try:
                found = make_guided(bundle, residency)
            except ltx2rt.UnsupportedError:
                assert gpu.counters().launches == 0
                outcomes.append("refused")
                continue
            assert gpu.problems() == []
            outcomes.append("replayed" if gpu.counters().graph_launches else "streamed")
        for name, latent in want.items():
            np.testing.assert_array_equal(found[name], latent, err_msg=name)
    assert outcomes[0] == "refused"
    assert outcomes[-1] == "replayed"
    if residency == "stage":  # below the least for all stages at once they take turns
        assert outcomes[1:3] == ["replayed", "streamed"]
    else:
        assert outcomes[1] == "refused"


@MATRIX
@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_engines_that_hold_their_weights(
    simulate: Simulate, engine_bundle: EngineBundle, reference: Outcome
) -> None:
    bundle = engine_bundle("bf16", "--weights", "constant")
    gpu = simulate()
    assert_close(make_clip(bundle), reference, "bf16")
    assert gpu.counters().live_bytes == 0


@pytest.mark.parametrize(
    ("memory", "residency", "graphs"),
    [
        (NO_ROOM, "stage", True),
        pytest.param(NO_ROOM, "stage", False, marks=MATRIX),
        pytest.param(ROOM, "stage", True, marks=MATRIX),
        pytest.param(ROOM, "resident", False, marks=MATRIX),
    ],
)
@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_cancelled_in_mid_stage(
    simulate: Simulate, engine_bundle: EngineBundle, memory: int, residency: str, graphs: bool
) -> None:
    """The next clip is as if nothing had been: what was loaded is not in its way."""
    bundle, size = engine_bundle("bf16"), {"height": 64, "width": 64, "num_frames": 9}
    gpu = simulate(memory_bytes=memory or least_memory_of(bundle))
    runtime = RuntimeConfig(threads=1, cuda_graphs=graphs, residency=residency)
    with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle), runtime) as pipe:
        want = pipe(prompt="a", seed=3, **size).latents
        for stage, step in (("stage_1", 3), ("stage_2", 1), ("decode video", 0)):
            with pytest.raises(ltx2rt.Cancelled):
                list(pipe(prompt="b", seed=4, job=stopped_at(stage, step), **size).frames)
            again = pipe(prompt="a", seed=3, **size).latents
            for name, latent in want.items():
                np.testing.assert_array_equal(again[name], latent, err_msg=name)
    assert gpu.counters().live_bytes == 0


def stopped_at(stage: str, step: int) -> ltx2rt.Job:
    def stop(progress: ltx2rt.Progress) -> None:
        if (progress.stage, progress.step) == (stage, step):
            job.cancel.set()

    job = ltx2rt.Job(stop)
    return job


@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_a_card_that_is_too_small_says_so(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=20 << 20)
    with pytest.raises(ltx2rt.UnsupportedError, match=r"needs .* of Simulated GPU 0.*, .* larger"):
        make_clip(bundle)


@pytest.mark.usefixtures("tensorrt_rtx", "kernels")
def test_a_missing_synchronisation_shows(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ltx2rt.open_bundle(engine_bundle("bf16"))
    simulate()
    with Loader(bundle).engine("vocoder", RuntimeConfig()) as engine:
        feeds: dict[str, Any] = {"mel": np.ones((1, 2, 9, 64), np.float32)}
        assert np.isfinite(engine(feeds)["waveform"]).all()
        monkeypatch.setattr(staging, "_finish", lambda pending: None)
        late = engine(feeds)["waveform"]
        monkeypatch.undo()
        want = engine(feeds)["waveform"]
        assert not np.array_equal(late, want)
