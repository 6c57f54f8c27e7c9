"""Sound decoded beside the picture on the simulated GPU: on a stream and in memory of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ltx2rt
from ltx2rt.backends.device_frames import _Decoding
from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.bundle.card import Card
from ltx2rt.bundle.memory_plan import SOUND_ENGINES
from ltx2rt.components.device_tiles import ConvolutionTiles
from ltx2rt.config import RuntimeConfig
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.results.clip import Clip
from ltx2rt.trace import PICTURE, SOUND
from tests.simulator.driver import SimulatedDriver
from tests.simulator.fixtures import EngineBundle, Simulate
from tests.simulator.least_memory import least_memory_of

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx", "kernels")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


@contextmanager
def made(bundle: Path) -> Iterator[Clip]:
    source = ltx2rt.open_bundle(bundle)
    with ltx2rt.DistilledPipeline(source, RuntimeConfig(threads=1)) as pipe:
        yield pipe(
            prompt="a bell", height=64, width=64, num_frames=9, seed=3, sigmas=(1.0, 0.0),
            stage_2_sigmas=(0.9, 0.0), stage_2_sampler="euler",
        )  # fmt: skip


def saved(gpu: SimulatedDriver, clip: Clip, path: Path) -> list[bool]:
    """Of every engine run that decodes sound: whether one that decodes the picture may run
    meanwhile.
    """
    start = len(gpu.operations())
    clip.save(path)
    calls = [o for o in gpu.operations()[start:] if o.kind == "call"]
    pictures = [o for o in calls if o.label == "video"]
    sounds = [o for o in calls if o.label in ("mel", "waveform")]
    assert len(pictures) >= 1
    assert len(sounds) == 2
    return [any(gpu.may_overlap(s, p) for p in pictures) for s in sounds]


def meet(patch: pytest.MonkeyPatch) -> None:
    """Sound is waited for once a tile of the picture is enqueued, and that tile once the last part
    of the sound is: both are at work.
    """
    tile, sound = threading.Event(), threading.Event()
    decode, passed = ConvolutionTiles.decode, _Decoding._passed
    receive, enqueue = TrtEngine.receive, TrtEngine.enqueue

    def decoded(self: Any, *arguments: Any) -> None:
        decode(self, *arguments)
        tile.set()

    def enqueued(self: TrtEngine) -> None:
        enqueue(self)
        if self.spec.component == "vocoder":
            sound.set()

    def received(self: TrtEngine, wanted: Any) -> None:
        if self.spec.component in SOUND_ENGINES:
            assert tile.wait(300), "the picture waits for the sound"
        receive(self, wanted)

    def waited(self: Any, event: Any) -> None:
        assert sound.wait(300), "the sound waits for the picture"
        passed(self, event)

    patch.setattr(ConvolutionTiles, "decode", decoded)
    patch.setattr(TrtEngine, "enqueue", enqueued)
    patch.setattr(TrtEngine, "receive", received)
    patch.setattr(_Decoding, "_passed", waited)


def sequential(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("ltx2rt.bundle.loader.Loader.sound_is_apart", lambda *_: False)


def test_both_are_decoded_at_once(
    simulate: Simulate, engine_bundle: EngineBundle, tmp_path: Path
) -> None:
    """The file is the one that is written when they are decoded one after another."""
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    with pytest.MonkeyPatch.context() as patch, made(bundle) as clip, ltx2rt.Trace() as trace:
        meet(patch)
        assert saved(gpu, clip, tmp_path / "a.mp4") == [True, True]
    names = [s.name for s in trace.spans if s.track == SOUND]
    assert names == ["audio_decoder", "vocoder"]
    assert any(s.name == "a tile" for s in trace.spans if s.track == PICTURE)
    assert {"decode video", "decode audio"} <= {row["stage"] for row in trace.totals()}
    with pytest.MonkeyPatch.context() as patch, made(bundle) as clip:
        sequential(patch)
        saved(gpu, clip, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert gpu.counters().live_bytes == 0
    assert gpu.counters().host_allocations == gpu.counters().host_frees


def test_a_small_card_decodes_them_in_turn(
    simulate: Simulate, engine_bundle: EngineBundle, tmp_path: Path
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=least_memory_of(bundle))
    with made(bundle) as clip:
        assert not clip.sound_is_apart()
        assert saved(gpu, clip, tmp_path / "a.mp4") == [False, False]


def test_an_error_of_either_ends_both(
    simulate: Simulate, engine_bundle: EngineBundle, tmp_path: Path
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    with made(bundle) as clip:
        for name in ("video_latent", "audio_latent"):
            whole = getattr(clip, name)
            setattr(clip, name, whole * float("nan"))
            with pytest.raises(ltx2rt.EngineError, match="NaN"):
                clip.save(tmp_path / "a.mp4")
            setattr(clip, name, whole)
            clip.waveform = None
        clip.job.cancel.set()
        with pytest.raises(ltx2rt.Cancelled):
            clip.save(tmp_path / "a.mp4")
        clip.job.cancel.clear()
        clip.save(tmp_path / "b.mp4")
    assert [p.name for p in tmp_path.glob("*.mp4")] == ["b.mp4"]
    assert gpu.counters().live_bytes == 0


def same_stream(patch: pytest.MonkeyPatch) -> None:
    """The lane has the streams of the device."""
    patch.setattr(CudaDevice, "lane", lambda self: self)


def same_scratch(patch: pytest.MonkeyPatch) -> None:
    """Activations of both lie in the same place."""
    first: dict[str, Any] = {}
    real = DeviceMemory.scratch

    def scratch(self: DeviceMemory, size: int) -> int:
        return first.setdefault("address", real(self, size))

    patch.setattr(DeviceMemory, "scratch", scratch)


@pytest.mark.parametrize("mistake", [same_stream, same_scratch])
def test_mistakes_show(
    simulate: Simulate, engine_bundle: EngineBundle, tmp_path: Path, mistake: Any
) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        meet(patch)
        try:
            with made(bundle) as clip:
                beside = saved(gpu, clip, tmp_path / "a.mp4")
        except ltx2rt.Ltx2rtError:
            beside = []
    problems = gpu.take_problems()
    assert problems or beside != [True, True]


def test_card_knows_whose_memory_it_is() -> None:
    card = Card(memory="one", plan=None, keep_text=False, sound="two")  # type: ignore[arg-type]
    assert [card.memory_of(n) for n in ("vocoder", "audio_decoder", "video_decoder")] == [
        "two", "two", "one",
    ]  # fmt: skip
