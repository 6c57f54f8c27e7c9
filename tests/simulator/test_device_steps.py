"""Steps taken on the simulated GPU: latents stay there through a stage, with numpy's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.backends.device_steps import DeviceLatents
from ltx2rt.components import device_sampling, diffusion_stage
from ltx2rt.config import RuntimeConfig
from ltx2rt.device import cuda
from ltx2rt.engine import F32, Array
from ltx2rt.latents.shapes import AudioLatentShape
from ltx2rt.latents.state import LatentState, make_audio_state
from ltx2rt.progress import Progress
from ltx2rt.sampling.guidance import GuiderParams, guided
from ltx2rt.sampling.samplers import (
    ancestral_step,
    blend_clean,
    euler_step,
    post_process,
    to_denoised,
    token_timesteps,
)
from ltx2rt.sampling.step_numbers import PASSES, euler_numbers, noisy_numbers
from ltx2rt_export.device_graphs.steps import euler_graph, noisy_graph
from tests.simulator.driver import Counters
from tests.simulator.fixtures import EngineBundle, Simulate
from tests.simulator.host_twin import use_host_engines

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx", "kernels")

PLAIN = GuiderParams(cfg_scale=3.0, stg_scale=1.0, stg_blocks=(1,), modality_scale=3.0)
RESCALED = dataclasses.replace(PLAIN, rescale_scale=0.7)
#: of the driver, a replayed step; it was 36 when passes were graphs of their own
MAX_CALLS = 20
#: a deviation summed in float32 instead of float64, times the factors of guidance
RESCALE_REL_L2 = 1e-5


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


def fresh_state() -> LatentState:
    """Of 12 tokens, some of which are fixed, or pulled to something."""
    random = np.random.default_rng(3)
    state = make_audio_state(AudioLatentShape(num_frames=12))
    shape = state.latent.shape
    mask = random.choice(np.array([0, 0.3, 1], np.float32), (*shape[:2], 1))
    latent, clean = (random.standard_normal(shape, np.float32) for _ in range(2))
    return dataclasses.replace(state, latent=latent, clean=clean, mask=mask)


def run_graph(model: Any, feeds: Mapping[str, Array]) -> F32:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    found, bad = session.run(["next", "not_finite"], {n: a for n, a in feeds.items() if n in names})
    assert bad == [np.isfinite(found).size - np.isfinite(found).sum()]
    return found


@pytest.mark.parametrize("params", [None, PLAIN, RESCALED], ids=["simple", "guided", "rescaled"])
@pytest.mark.parametrize(("sampler", "after", "eta"), [
    ("euler", 0.4, 0), ("euler", 0, 0), ("noisy", 0.4, 1), ("noisy", 0.4, 0.5), ("noisy", 0.4, 0),
    ("noisy", 0, 1),
])  # fmt: skip
def test_a_step_is_that_of_numpy(
    params: GuiderParams | None, sampler: str, after: float, eta: float
) -> None:
    state, sigma, t = fresh_state(), np.float32(0.7), np.float32(after)
    random = np.random.default_rng(4)
    ran = PASSES if params else PASSES[:1]
    velocities = {n: random.standard_normal(state.latent.shape, np.float32) for n in ran}
    noise = random.standard_normal(state.latent.shape, np.float32)
    levels = token_timesteps(state, sigma)
    clean = {n: to_denoised(state.latent, v, levels) for n, v in velocities.items()}
    found = clean["cond"]
    if params:
        found = guided(
            params, found, uncond=clean["uncond"], perturbed=clean["ptb"], isolated=clean["mod"]
        )
    fixed = post_process(found, state)
    if sampler == "euler":
        want = euler_step(state.latent, fixed, sigma, t)
        numbers, graph = euler_numbers(params, ran, sigma, t), euler_graph("float32", "float32")
    else:
        want = ancestral_step(state.latent, fixed, sigma, t, noise, eta=eta)
        want = blend_clean(want, state) if t != 0 and eta > 0 else want
        numbers = noisy_numbers(params, ran, sigma, t, eta)
        graph = noisy_graph("float32", "float32")
    feeds = {n: velocities.get(n, velocities["cond"])[0] for n in PASSES}
    feeds |= {"latent": state.latent[0], "clean": state.clean[0], "mask": state.mask[0]}
    got = run_graph(graph.model, {**feeds, "numbers": numbers, "noise": noise[0]})
    if params is RESCALED:
        assert np.linalg.norm(got - want[0]) <= RESCALE_REL_L2 * np.linalg.norm(want)
    else:
        np.testing.assert_array_equal(got, want[0])


def make(
    bundle: Path,
    params: GuiderParams = PLAIN,
    sampler: str | None = None,
    image: Path | None = None,
    job: ltx2rt.Job | None = None,
    guidance: ltx2rt.GuidanceConfig | None = None,
    **runtime: Any,
) -> Mapping[str, Array]:
    """Latents of a guided clip: four passes a step, each of its own kind."""
    guidance = guidance or ltx2rt.GuidanceConfig(num_inference_steps=3, video=params, audio=params)
    source = ltx2rt.open_bundle(bundle)
    images = () if image is None else (ltx2rt.ImageCondition(path=image, strength=0.6),)
    with ltx2rt.OneStagePipeline(source, RuntimeConfig(threads=1, **runtime)) as pipe:
        return pipe(
            prompt="a bell", height=64, width=64, num_frames=9, seed=3, guidance=guidance,
            sampler=sampler, images=images, job=job,
        ).latents  # fmt: skip


def on_host(bundle: Path, *arguments: Any, **options: Any) -> Mapping[str, Array]:
    with pytest.MonkeyPatch.context() as patch:
        use_host_engines(patch)
        return make(bundle, *arguments, **options)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Why each stage was sampled on the host; None: it was not."""
    found: list[str | None] = []

    def told(*arguments: Any, **options: Any) -> str | None:
        found.append(device_sampling.reason_against(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(diffusion_stage, "reason_against", told)
    return found


@pytest.mark.parametrize(("sampler", "image"), [(None, True), ("euler_ancestral", False)])
def test_a_stage_gives_what_the_host_gives(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    asked: list[str | None],
    tmp_path: Path,
    sampler: str | None,
    image: bool,
) -> None:
    bundle = engine_bundle("bf16")
    path = tmp_path / "image.png" if image else None
    if path is not None:
        pixels = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    want = on_host(bundle, PLAIN, sampler, path)
    gpu = simulate(memory_bytes=1 << 30)
    found = make(bundle, PLAIN, sampler, path)
    assert asked == ["no engines take steps on a device", None]
    for name, latent in want.items():
        np.testing.assert_array_equal(found[name], latent, err_msg=name)
    assert gpu.counters().live_bytes == 0


def test_what_crosses_the_bus_in_a_step(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    """Nothing but a few numbers, for which the host waits once; passes and step are one launch."""
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    seen: list[tuple[Counters, int]] = []

    def look(progress: Progress) -> None:
        if progress.stage == "stage_1" and progress.step:
            seen.append((gpu.counters(), gpu.driver_calls))

    make(bundle, RESCALED, job=ltx2rt.Job(look))
    step, calls = seen[2][0] - seen[1][0], seen[2][1] - seen[1][1]
    assert step.dtoh_bytes == 8  # how many values of either latent are NaN or infinite
    assert step.htod_bytes < 1000
    assert step.htod_calls <= 6  # of either modality: noise level, timesteps, numbers
    assert step.synchronizations == 1
    assert step.hidden_synchronizations == step.allocations == step.frees == 0
    assert step.graph_launches == 1
    assert step.launches == 4 * 5 + 2  # 4 passes of 5 parts and a step of either modality
    assert step.graph_operations == step.launches + step.dtod_calls  # nothing is beside it
    assert calls <= MAX_CALLS


def test_guidance_that_changes_on_the_way(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    """Steps of other passes are other graphs; all give what they give call by call."""
    bundle = engine_bundle("bf16")
    early = GuiderParams(cfg_scale=2.0, modality_scale=3.0)
    schedule = ltx2rt.GuiderSchedule(bins={0.75: GuiderParams(), 1.0: early})
    guidance = ltx2rt.GuidanceConfig(
        num_inference_steps=6, video_schedule=schedule, audio_schedule=schedule
    )
    want = on_host(bundle, guidance=guidance)
    gpu = simulate(memory_bytes=1 << 30)
    seen: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        if progress.stage == "stage_1":
            seen.append((gpu.counters().graph_launches, gpu.counters().launches))

    found = make(bundle, guidance=guidance, job=ltx2rt.Job(look))
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(seen)]
    full, cheap = 3 * 5 + 2, 5 + 2
    assert steps == [(0, full), (1, full), (1, full), (0, cheap), (1, cheap), (1, cheap)]
    for name, latent in want.items():
        np.testing.assert_array_equal(found[name], latent, err_msg=name)


def test_numbers_that_are_none_stop_it(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=1 << 30)
    make_numbers = device_sampling.euler_numbers
    broken = lambda *arguments: make_numbers(*arguments) * np.float32(np.nan)  # noqa: E731
    monkeypatch.setattr(device_sampling, "euler_numbers", broken)
    with pytest.raises(ltx2rt.EngineError, match="stage_1, step 1 of 3: the video latent and"):
        make(bundle)
    make(bundle, allow_nan=True)


@pytest.mark.parametrize(("reason", "options"), [
    ("the sampler res_2s keeps values", {"sampler": "res_2s"}),
    ("guidance apg projects", {"params": dataclasses.replace(PLAIN, cfg_mode="apg")}),
    ("guidance skips steps", {"params": dataclasses.replace(PLAIN, skip_step=1)}),
])  # fmt: skip
def test_what_needs_the_host_says_so(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    asked: list[str | None],
    reason: str,
    options: dict[str, Any],
) -> None:
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=1 << 30)
    job = ltx2rt.Job()
    latents = make(bundle, **options, job=job)
    assert reason in str(asked[0])
    assert job.host_work == {"stage_1": asked[0]}
    assert all(np.isfinite(latent).all() for latent in latents.values())


def test_previews_and_cancelling(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    asked: list[str | None],
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    shown: list[ltx2rt.Preview] = []
    make(bundle, job=ltx2rt.Job(on_preview=shown.append))
    assert [preview.step for preview in shown] == [1, 2, 3]
    assert len(np.unique(shown[-1].frames)) > 1  # colours, fitted in clips of 64 pixels
    assert asked == ["a preview looks at every step"]
    job = ltx2rt.Job(lambda p: job.cancel.set() if (p.stage, p.step) == ("stage_1", 2) else None)
    with pytest.raises(ltx2rt.Cancelled):
        make(bundle, job=job)
    assert asked[-1] is None
    assert gpu.counters().live_bytes == 0


def stale_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new latent does not become the one that the next step starts from."""
    monkeypatch.setattr(cuda.CudaDevice, "copy_within", lambda *_: None)


def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt's pass in the place of the negative one's."""
    enqueue = DeviceLatents.enqueue

    def confused(self: Any, outputs: Any) -> None:
        enqueue(self, {**outputs, "uncond": outputs["cond"]})

    monkeypatch.setattr(DeviceLatents, "enqueue", confused)


def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed steps keep the numbers of the captured one."""
    prepare, prepared = DeviceLatents.prepare, list[str]()

    def twice(self: Any, modality: str, *rest: Any) -> None:
        prepared.append(modality)
        if prepared.count(modality) < 3:
            prepare(self, modality, *rest)

    monkeypatch.setattr(DeviceLatents, "prepare", twice)


def dropped_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of whole noise: nothing is pulled to clean tokens."""
    hold = DeviceLatents._hold

    def unmasked(self: Any, latent: Array, clean: Array, mask: Array) -> Any:
        return hold(self, latent, clean, np.ones_like(mask))

    monkeypatch.setattr(DeviceLatents, "_hold", unmasked)


def test_mistakes_show(simulate: Simulate, engine_bundle: EngineBundle, tmp_path: Path) -> None:
    bundle, path = engine_bundle("bf16"), tmp_path / "image.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(path)
    simulate(memory_bytes=1 << 30)
    want = make(bundle, image=path)
    for mistake in (stale_latent, wrong_pass, dropped_mask, same_numbers):
        with pytest.MonkeyPatch.context() as patch:
            mistake(patch)
            found = make(bundle, image=path)
        same = [np.array_equal(found[name], latent) for name, latent in want.items()]
        assert not all(same), mistake.__name__
