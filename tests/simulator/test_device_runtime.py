"""The transformer of a bundle on the simulated GPU: its memory, its copies, its graphs; and that
each mistake which the runtime could make there shows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt
from ltx2rt.backends import device_stack
from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.layer_memory import LayerMemory
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.memory_plan import MemoryPlan
from ltx2rt.components.transformer import ModalityInput, Perturbations, Transformer
from ltx2rt.config import RuntimeConfig
from ltx2rt.device import staging
from ltx2rt.device.arena import aligned
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.engine import Array
from ltx2rt.errors import EngineError, ShapeError, UnsupportedError
from ltx2rt.names import TRANSFORMER_BLOCK, TRANSFORMER_STACK
from ltx2rt.trace import COMPUTE, UPLOAD
from tests.simulator.driver import SimulatedDriver
from tests.simulator.fixtures import EngineBundle, Simulate
from tests.simulator.least_memory import least_memory_of
from tests.tolerances import SIMULATED_LATENT_REL_L2

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx", "kernels")

ROOM = 1 << 30
#: replayed passes; design §10
MAX_CALLS = 150


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


class Model:
    """The transformer of a bundle, and passes of one stage through it."""

    def __init__(self, bundle: Path, **runtime: Any) -> None:
        self.loader = Loader(ltx2rt.open_bundle(bundle))
        self.options = ltx2rt.open_bundle(bundle).options(TRANSFORMER_BLOCK)
        self.stack = self.loader.stack(TRANSFORMER_STACK, RuntimeConfig(**runtime))
        self.transformer = Transformer(self.stack, self.options)

    def streams(self) -> tuple[ModalityInput, ModalityInput]:
        generator = np.random.default_rng(1)

        def stream(name: str, tokens: int) -> ModalityInput:
            facts = self.options[name]
            width = facts["caption_channels"] or facts["context_dim"]
            start = np.arange(tokens, dtype=np.float32)[None, None, :, None]
            places = np.concatenate([start, start + 1], axis=-1)
            return ModalityInput(
                latent=generator.standard_normal((1, tokens, facts["in_channels"]), np.float32),
                sigma=np.ones(1, np.float32),
                timesteps=np.ones((1, tokens), np.float32),
                positions=np.repeat(places, len(facts["max_pos"]), axis=1),
                context=generator.standard_normal((1, 1024, width), np.float32),
            )

        return stream("video", 8), stream("audio", 4)

    def passes(self, count: int = 4) -> list[Array]:
        """Velocities of the steps of one stage."""
        video, audio = self.streams()
        found = []
        with self.transformer.stage():
            for step in range(count):
                latent = video.latent * np.float32(1 + step)
                given = dataclasses.replace(video, latent=latent)
                found += [v for v in self.transformer(given, audio) if v is not None]
        return found

    def close(self) -> None:
        self.stack.close()
        self.loader.close()


@contextlib.contextmanager
def model(bundle: Path, **runtime: Any) -> Iterator[Model]:
    made = Model(bundle, **runtime)
    try:
        yield made
    finally:
        made.close()


def assert_same(found: list[Array], expected: list[Array]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_replayed_pass(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    """One launch, and next to nothing besides; its numbers are those of passes call by call."""
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=ROOM)
    with model(bundle, cuda_graphs=False) as eager:
        want = eager.passes()
    assert gpu.counters().graph_launches == 0
    with model(bundle) as made:
        video, audio = made.streams()
        with made.transformer.stage():
            for _ in range(2):
                made.transformer(video, audio)
            gpu.reset_counters()
            made.transformer(video, audio)
            counters, calls = gpu.counters(), gpu.driver_calls
        assert counters.graph_launches == 1
        assert counters.allocations == counters.host_allocations == counters.frees == 0
        assert counters.synchronizations == 1
        assert counters.hidden_synchronizations == counters.pageable_calls == 0
        assert calls <= MAX_CALLS
        assert counters.htod_bytes <= 8 * (video.latent.nbytes + audio.latent.nbytes)
        assert_same(made.passes(), want)
    assert gpu.counters().live_bytes == 0


def test_passes_without_a_mask_run_blocks_without_biases(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen for every pass, also where one was captured; a mask of ones changes nothing."""
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=ROOM)
    ran: list[str] = []
    run = TrtEngine.run

    def noted(self: TrtEngine, binding: Any) -> None:
        ran.append(self.spec.component)
        run(self, binding)

    monkeypatch.setattr(TrtEngine, "run", noted)
    with model(bundle) as made:
        video, audio = made.streams()
        ones = dataclasses.replace(video, attention_mask=np.ones((1, 8, 8), np.float32))
        with made.transformer.stage():
            plain = made.transformer(video, audio)
            for _ in range(2):  # captured, replayed
                assert_same(list(made.transformer(video, audio)), list(plain))
            assert {n for n in ran if "block" in n} == {"transformer_block_unmasked"}
            ran.clear()
            masked = made.transformer(ones, audio)
            assert {n for n in ran if "block" in n} == {"transformer_block"}
            assert_same(list(made.transformer(video, audio)), list(plain))
    for mine, want in zip(masked, plain, strict=True):
        error = np.linalg.norm(mine - want) / np.linalg.norm(want)
        assert error <= SIMULATED_LATENT_REL_L2["bf16"].bound


def test_passes_of_a_guided_step_are_waited_for_once(
    simulate: Simulate, engine_bundle: EngineBundle
) -> None:
    """Each gives what it gives alone; replayed, they are as many launches and one wait."""
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=ROOM)
    with model(bundle) as made:
        video, audio = made.streams()
        skipped = Perturbations().and_skip("video_self", (1,))
        apart = Perturbations().and_skip("audio_to_video").and_skip("video_to_audio")
        other = dataclasses.replace(video, context=-video.context)
        asked = [
            (video, audio, Perturbations()),
            (other, audio, Perturbations()),
            (video, audio, skipped),
            (video, audio, apart),
        ]
        with made.transformer.stage():
            alone = [made.transformer(*each) for each in asked]
        with made.transformer.stage():
            for _ in range(3):  # enqueued, captured, replayed
                gpu.reset_counters()
                for mine, want in zip(made.transformer.passes(asked), alone, strict=True):
                    assert_same(list(mine), list(want))
        counters = gpu.counters()
        assert counters.graph_launches == len(asked)
        assert counters.synchronizations == 1
        assert counters.allocations == counters.hidden_synchronizations == 0
    results = [velocity for velocity, _ in alone]
    for number, result in enumerate(results):
        assert all(not np.array_equal(result, later) for later in results[number + 1 :])


def test_nothing_is_allocated_once_the_card_is_divided(
    simulate: Simulate, engine_bundle: EngineBundle
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=ROOM)
    with model(bundle) as made:
        gpu.reset_counters()
        made.passes(3)
        assert gpu.counters().allocations == gpu.counters().frees == 0


def test_layers_without_room_go_up_while_others_run(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=ROOM)
    with model(bundle) as made:
        want = made.passes()
    monkeypatch.setattr(DeviceMemory, "has_room", lambda *_: False)
    with model(bundle) as made:
        before = len(gpu.operations())
        assert_same(made.passes(), want)
        work = gpu.operations()[before:]
        stream = int(made.loader._card_of(RuntimeConfig()).memory.device.upload.handle)
    uploads = [o for o in work if o.kind == "copy" and o.stream == stream]
    launches = [o for o in work if o.kind == "call"]
    assert not any(o.pageable for o in work)
    # an upload may run while the part before the one that it is for runs; not that of the head:
    # five parts take turns in two places, so that head and tail have the same one (the next test)
    waiting = [u for u in uploads if not any(gpu.may_overlap(u, run) for run in launches)]
    assert uploads[0] in waiting
    assert waiting == [u for u in uploads if u.bytes == uploads[0].bytes]
    assert len(waiting) == 4 + 1  # passes, and the one that may follow
    assert gpu.counters().graph_launches > 0  # of the first model


@pytest.mark.parametrize("parts", [4, 5])
def test_only_the_head_of_an_odd_stack_waits(
    gpu: SimulatedDriver, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """With an even number of layers, as all released models have, every upload but the very first
    may run beside the part before it.
    """
    monkeypatch.setattr(DeviceMemory, "has_room", lambda *_: False)
    memory = DeviceMemory(CudaDevice("a test")).opened()
    loads = [lambda n=n: {"w": np.full(4096, n, np.float32)} for n in range(parts)]
    layers, runs = LayerMemory(memory, loads, keep=True), 3
    seen: list[float] = []
    for number in range(runs * parts):
        weights = layers.use(number % parts)["w"]
        source, size = weights.address, weights.nbytes

        def read(source: int = source, size: int = size) -> None:
            seen.append(float(gpu.view(source, size).view(np.float32)[-1]))

        compute = int(memory.device.compute.handle)
        assert gpu.launch(compute, read, "a part", reads=[(source, size)]) == 0
        layers.ran(number % parts)
    memory.synchronize()
    work = gpu.operations()
    launches = [o for o in work if o.kind == "call"]
    uploads = [o for o in work if o.direction == "htod"]
    waiting = [
        n for n, u in enumerate(uploads) if not any(gpu.may_overlap(u, run) for run in launches)
    ]
    assert seen == [*range(parts)] * runs
    assert len(uploads) == runs * parts + 1
    assert waiting == ([0] if parts % 2 == 0 else [n * parts for n in range(runs + 1)])
    layers.close()
    memory.close()


@pytest.mark.parametrize("kind", ["whole", "by stages", "refused"])
def test_a_card_is_large_enough_or_refused(
    simulate: Simulate, engine_bundle: EngineBundle, kind: str
) -> None:
    bundle = engine_bundle("bf16")
    least = least_memory_of(bundle)
    sizes = {"whole": least, "by stages": least - (1 << 20), "refused": least // 2}
    simulate(memory_bytes=sizes[kind])
    if kind == "refused":
        with pytest.raises(UnsupportedError, match=r"needs .* of Simulated GPU 0.*larger card"):
            model(bundle).__enter__()
        return
    with model(bundle) as made:
        plan = made.loader._card_of(RuntimeConfig()).plan
        assert plan is not None
        assert bool(plan.stages) == (kind == "by stages")
        assert made.passes(2)


def forget_wait(patch: pytest.MonkeyPatch) -> None:
    """The compute stream does not wait for weights."""
    patch.setattr(LayerMemory, "use", lambda s, part: (s._send(part), s._places[part].tensors)[1])


def forget_order(patch: pytest.MonkeyPatch) -> None:
    """The next layer goes up over one that may still run."""

    def before(self: LayerMemory, slot: Any, part: int) -> None:
        slot.holds = part

    patch.setattr(LayerMemory, "_before", before)


def reuse_early(patch: pytest.MonkeyPatch) -> None:
    """Staging memory is filled again before it was read."""
    patch.setattr(staging, "HALF_BYTES", 4096)
    patch.setattr(staging.Staging.__init__, "__defaults__", (4096,))
    patch.setattr(staging._Half, "leave", lambda self: self.streams.clear())


def overlap_scratch(patch: pytest.MonkeyPatch) -> None:
    """Activations lie over tensors."""

    def scratch(self: DeviceMemory, size: int) -> int:
        return self._scratch[0] + aligned(self._scratch[1])  # where tensors begin

    patch.setattr(DeviceMemory, "scratch", scratch)


@pytest.mark.parametrize(
    "mistake", [forget_wait, forget_order, reuse_early, overlap_scratch], ids=lambda m: m.__name__
)
def test_mistakes_with_memory_show(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Any,
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=ROOM)
    monkeypatch.setattr(DeviceMemory, "has_room", lambda *_: False)
    with model(bundle) as made:
        want = made.passes(2)
    found: list[Array] = []
    with monkeypatch.context() as patch, contextlib.suppress(EngineError):
        mistake(patch)
        with model(bundle) as made:
            found = made.passes(2)
    problems = gpu.take_problems()
    same = len(found) == len(want) and all(map(np.array_equal, found, want))
    assert problems or not same


def test_an_address_that_changes_after_the_capture_shows(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=ROOM)
    with model(bundle) as made:
        want = made.passes()
    real = device_stack.DeviceStack._upload

    def moved(self: Any, number: int, lane: int, call: Any, shared: Any) -> Any:
        state = real(self, number, lane, call, shared)
        if call.constants.replays._kept:  # what is captured reads the old place
            key = next(k for k in state.tensors if k[0] == "video_latent")
            array = dict(device_stack.ready(call.tensors, self._dtypes))[key]
            state.tensors[key] = self._memory.hold(array)
            monkeypatch.setattr(device_stack, "_facts", lambda state: [])
        return state

    with monkeypatch.context() as patch:
        patch.setattr(device_stack, "_facts", lambda state: [])
        patch.setattr(device_stack.DeviceStack, "_upload", moved)
        patch.setattr(DeviceMemory, "upload", lambda self, name, array: self.hold(array))
        with model(bundle) as made:
            found = made.passes()
    assert not all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))


def test_a_wrong_dtype_is_refused(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=ROOM)
    monkeypatch.setattr(
        device_stack,
        "ready",
        lambda tensors, dtypes: [
            ((name, "float32"), np.ascontiguousarray(a, np.float32)) for name, a in tensors.items()
        ],
    )
    with model(bundle) as made, pytest.raises(ShapeError, match="expected bfloat16"):
        made.passes(1)


def test_growing_in_a_stage_is_refused(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=ROOM)
    with model(bundle) as made:
        card = made.loader._card_of(RuntimeConfig())
        memory, plan = card.memory, card.plan
        assert isinstance(plan, MemoryPlan)
        made.passes(1)
        with pytest.raises(EngineError, match=r"were planned for activations"):
            memory.scratch(plan.regions.scratch + 1)
        with pytest.raises(EngineError, match="planned for inputs, outputs and constants"):
            memory.buffer("one more", plan.regions.tensors + 1)


def test_pinned_memory_may_be_refused(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are pageable then, said once, and the numbers are the same."""
    from cuda import core

    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=ROOM)
    with model(bundle) as made:
        want = made.passes(2)

    def refuse(self: object, size: int) -> None:
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(
        core, "LegacyPinnedMemoryResource", lambda: type("Refusing", (), {"allocate": refuse})()
    )
    with pytest.warns(RuntimeWarning, match="refuses pinned memory") as said, model(bundle) as made:
        assert_same(made.passes(2), want)
    assert len(said) == 1
    assert gpu.counters().pageable_calls > 0


def test_the_second_gpu(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(devices=2, memory_bytes=ROOM)
    with model(bundle, device=1) as made:
        made.passes(1)
    assert gpu.counters(0).launches == 0
    assert gpu.counters(1).launches > 0


def test_a_trace_of_streams(
    simulate: Simulate, engine_bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers, their uploads and replays are spans; nothing is marked without a trace."""
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=ROOM)
    with model(bundle) as made, ltx2rt.Trace() as resident:
        want = made.passes()
    layers = [s.name for s in resident.spans if s.track == COMPUTE]
    once = ["transformer_head 0", *(f"transformer_block_unmasked {n}" for n in (1, 2, 3))]
    once.append("transformer_tail 4")
    replays = ["transformer_head to tail, replayed"] * 3
    assert layers == once + replays
    uploads = [s.name for s in resident.spans if s.track == UPLOAD]
    assert uploads == [f"layer {n}" for n in range(5)]  # head and tail too
    assert all(s.end_s >= s.start_s for s in resident.spans)
    monkeypatch.setattr(DeviceMemory, "has_room", lambda *_: False)
    with model(bundle) as made:
        with ltx2rt.Trace() as streamed:
            assert_same(made.passes(2), want[:4])
        events = gpu.counters().event_records
        assert_same(made.passes(2), want[:4])
        unmarked = gpu.counters().event_records - events
    assert [s.name for s in streamed.spans if s.track == COMPUTE] == once * 2
    uploads = [s.name for s in streamed.spans if s.track == UPLOAD]
    assert uploads[:3] == ["layer 0", "layer 1", "layer 2"]
    assert len(uploads) > 3  # those that had to give way came again
    assert unmarked < 30
