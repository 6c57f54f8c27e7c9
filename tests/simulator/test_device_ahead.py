"""The next clip made beside the decoding of this one on the simulated GPU: in memory of its own, on
streams of its own, with the numbers of one after another.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt
from ltx2rt.backends.binding import Binding
from ltx2rt.backends.device_frames import _Decoding
from ltx2rt.bundle.card_plan import needs_of
from ltx2rt.bundle.lane_plan import plan_lanes
from ltx2rt.bundle.memory_plan import MemoryPlan, plan_memory
from ltx2rt.components.device_tiles import ConvolutionTiles
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import DeviceLostError, UnsupportedError
from ltx2rt.names import TRANSFORMER_BLOCK
from ltx2rt.pipelines.next_clip import NextClip
from ltx2rt.trace import PICTURE
from tests.parity.command_line import ltx2rt as command
from tests.simulator.driver import SimulatedDriver, running
from tests.simulator.fixtures import EngineBundle, Simulate
from tests.simulator.least_memory import least_memory_of
from tests.simulator.test_device_sound import same_scratch, same_stream

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx", "kernels")

SMALL: dict[str, Any] = {
    "height": 64, "width": 64, "num_frames": 9, "sigmas": (1.0, 0.0), "stage_2_sigmas": (0.9, 0.0),
    "stage_2_sampler": "euler",
}  # fmt: skip
#: what engines of the text encoder, of a block of the transformer and of the decoder give
TEXT, BLOCK, TILE = "video_context", "video_hidden_out", "video"


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


@contextmanager
def opened(bundle: Path) -> Iterator[ltx2rt.DistilledPipeline]:
    runtime = RuntimeConfig(threads=1, residency="resident")
    with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle), runtime) as pipe:
        yield pipe


@pytest.fixture
def pipe(simulate: Simulate, engine_bundle: EngineBundle) -> Iterator[ltx2rt.DistilledPipeline]:
    """On a GPU with room for everything, of which nothing is left at the end."""
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    with opened(bundle) as pipe:
        yield pipe
    assert gpu.counters().live_bytes == 0
    assert gpu.counters().host_allocations == gpu.counters().host_frees
    assert "next clip" not in {thread.name for thread in threading.enumerate()}


def meet(patch: pytest.MonkeyPatch) -> None:
    """The first tile of a clip is waited for once a block of the next clip is enqueued, whose
    thread begins once that tile is enqueued: both are at work.
    """
    tile, block = threading.Event(), threading.Event()
    decode, passed, run, enqueue = (
        ConvolutionTiles.decode, _Decoding._passed, NextClip._run, Binding.enqueue,
    )  # fmt: skip

    def decoded(self: Any, *arguments: Any) -> None:
        decode(self, *arguments)
        tile.set()

    def waited(self: Any, event: Any) -> None:
        assert block.wait(300), "the next clip waits for the picture"
        passed(self, event)

    def begun(self: Any, make: Any) -> None:
        assert tile.wait(300), "the picture waits for the next clip"
        run(self, make)
        block.set()  # it ended

    def enqueued(self: Binding, *arguments: Any) -> None:
        enqueue(self, *arguments)
        if threading.current_thread().name == "next clip" and BLOCK in self._outputs:
            block.set()

    patch.setattr(ConvolutionTiles, "decode", decoded)
    patch.setattr(_Decoding, "_passed", waited)
    patch.setattr(NextClip, "_run", begun)
    patch.setattr(Binding, "enqueue", enqueued)


def made(pipe: ltx2rt.DistilledPipeline) -> list[Array]:
    """Frames, sound and latents of two clips."""
    found: list[Array] = []
    for clip in pipe.generate_many([3], prompts=["a bell", "rain"], **SMALL):
        frames = np.concatenate(list(clip.frames))
        found += [frames, clip.audio, *clip.latents.values()]
    return found


def labels_beside_tiles(gpu: SimulatedDriver) -> set[str]:
    """What may run while the first clip's tile is decoded."""
    calls = [o for o in gpu.operations() if o.kind == "call"]
    tile = next(o for o in calls if o.label == TILE)
    return {o.label for o in calls if o.id > tile.id and gpu.may_overlap(o, tile)}


def test_the_next_clip_is_made_beside_the_tiles(pipe: ltx2rt.DistilledPipeline) -> None:
    with pytest.MonkeyPatch.context() as patch, ltx2rt.Trace() as trace:
        meet(patch)
        beside = made(pipe)
        assert {TEXT, BLOCK} <= labels_beside_tiles(running())
    assert "a tile" in [s.name for s in trace.spans if s.track == PICTURE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltx2rt.bundle.loader.Loader.picture_is_apart", lambda *_: False)
        in_turn = made(pipe)
    assert len(beside) == len(in_turn) > 8
    for found, want in zip(beside, in_turn, strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("mistake", [same_stream, same_scratch])
def test_mistakes_show(simulate: Simulate, engine_bundle: EngineBundle, mistake: Any) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    with pytest.MonkeyPatch.context() as patch, suppress(ltx2rt.Ltx2rtError):
        mistake(patch)
        meet(patch)
        with opened(bundle) as pipe:
            made(pipe)
    assert gpu.take_problems() or BLOCK not in labels_beside_tiles(gpu)


def test_a_small_card_makes_them_in_turn(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=least_memory_of(bundle))
    source = ltx2rt.open_bundle(bundle)
    with ltx2rt.DistilledPipeline(source, RuntimeConfig(threads=1)) as pipe:  # stage by stage
        clips = pipe.generate_many([3, 4], prompt="a bell", **SMALL)
        with ltx2rt.Trace() as trace:
            next(clips)
        assert "the GPU has no room for the next clip" in "".join(trace.notes)
        assert not pipe.engines.picture_is_apart()
        assert "next clip" not in {thread.name for thread in threading.enumerate()}


def made_when_cancelled(patch: pytest.MonkeyPatch) -> None:
    """The next clip waits until it is cancelled: else it may be done by then."""
    real = NextClip._run

    def run(self: NextClip[Any], make: Any) -> None:
        while not self._cancel.is_set():
            time.sleep(0.001)
        real(self, make)

    patch.setattr(NextClip, "_run", run)


def test_what_ends_the_next_clip(pipe: ltx2rt.DistilledPipeline) -> None:
    """Leaving the loop, closing the pipeline, cancelling and an error: each leaves no thread, and
    the clip before it can be decoded.
    """
    asked = {"prompts": ["a bell", "rain"], **SMALL}
    clips = pipe.generate_many([3], **asked)
    first = next(clips)
    clips.close()  # type: ignore[attr-defined]
    assert "next clip" not in {thread.name for thread in threading.enumerate()}
    assert len(np.concatenate(list(first.frames))) == 9
    job = ltx2rt.Job()
    with pytest.MonkeyPatch.context() as patch:
        made_when_cancelled(patch)
        clips = pipe.generate_many([3], **asked, job=job)
        first = next(clips)
        job.cancel.set()
        with pytest.raises(ltx2rt.Cancelled):
            next(clips)
    job.cancel.clear()
    with pytest.MonkeyPatch.context() as patch:
        real = pipe.accept

        def accept(request: Any) -> Any:
            if request.config.prompt == "rain":
                raise ltx2rt.OptionError("no rain")
            return real(request)

        patch.setattr(pipe, "accept", accept)
        clips = pipe.generate_many([3], **asked)
        first = next(clips)
        assert len(np.concatenate(list(first.frames))) == 9
        with pytest.raises(ltx2rt.OptionError, match="no rain"):
            next(clips)
    with pytest.MonkeyPatch.context() as patch:
        made_when_cancelled(patch)
        clips = pipe.generate_many([3], **asked)
        next(clips)
        pipe.close()
        with pytest.raises(ltx2rt.Ltx2rtError, match=r"cancelled|closed"):
            next(clips)


def test_a_lost_gpu_ends_both(simulate: Simulate, engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16")
    gpu = simulate(memory_bytes=1 << 30)
    with pytest.MonkeyPatch.context() as patch, opened(bundle) as pipe:
        meet(patch)
        clips = pipe.generate_many([3], prompts=["a bell", "rain"], **SMALL)
        first = next(clips)
        gpu.lose(214, after=3)
        with pytest.raises(DeviceLostError):
            list(first.frames)
        with pytest.raises(DeviceLostError):
            next(clips)
    assert "next clip" not in {thread.name for thread in threading.enumerate()}


def test_a_batch(simulate: Simulate, engine_bundle: EngineBundle, tmp_path: Path) -> None:
    """Results come in the order of lines, an error of a line is its own, and what is made from the
    line before waits for it.
    """
    bundle = engine_bundle("bf16")
    simulate(memory_bytes=1 << 30)
    line = {
        "pipeline": "distilled", "height": 64, "width": 64, "num_frames": 9, "sigmas": [1.0, 0.0],
        "stage_2_sigmas": [0.9, 0.0], "stage_2_sampler": "euler",
    }  # fmt: skip
    jobs = [
        line | {"prompt": "a bell", "output": "a.mp4"},
        line | {"prompt": "rain", "lora": ["none.safetensors"], "output": "b.mp4"},
        line | {"prompt": "snow", "output": "c.mp4"},
        line | {"prompt": "hail", "audio": "made/c.mp4", "output": "d.mp4"},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    begun: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = NextClip.__init__

        def noted(self: Any, engines: Any, make: Any, cancel: Any) -> None:
            begun.append(make.args[0].asked.request.config.prompt)
            real(self, engines, make, cancel)

        patch.setattr(NextClip, "__init__", noted)
        outcome = command(
            "batch", bundle, tmp_path / "jobs.jsonl", "-o", tmp_path / "made", "--threads", 1
        )
    assert outcome.code == 1
    told = [json.loads(text) for text in outcome.out.splitlines()]
    assert [line["job"] for line in told] == [1, 2, 3, 4]
    assert ["none.safetensors" in line.get("error", "") for line in told] == [0, 1, 0, 0]
    assert begun == ["rain"]
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["a.mp4", "c.mp4", "d.mp4"]
    assert "one after another" not in outcome.err


@pytest.mark.parametrize("resident", [True, False])
def test_a_lane_costs_the_rest_nothing(engine_bundle: EngineBundle, resident: bool) -> None:
    """On cards of every size: the plan fits, and keeps on the card what it keeps without lanes."""
    bundle = engine_bundle("bf16")
    manifest = ltx2rt.open_bundle(bundle).manifest
    needs = needs_of(bundle, manifest)
    block = manifest.components[TRANSFORMER_BLOCK]
    long = {TRANSFORMER_BLOCK: replace(block, layers=block.layers * 16)}
    manifest = replace(manifest, components=manifest.components | long)
    apart: list[bool] = []
    kept: set[int] = set()
    for room in range(1 << 25, 1 << 27, 1 << 18):
        try:
            want = plan_memory(manifest, needs, room, resident=resident, card="a card")
        except UnsupportedError:
            continue
        plan = plan_lanes(manifest, needs, room, resident=resident, card="a card")
        assert plan.total <= room
        assert (plan.keep_text, plan.finishes_frames, plan.finishes_floats, stays(plan)) == (
            want.keep_text, want.finishes_frames, want.finishes_floats, stays(want),
        )  # fmt: skip
        apart.append(plan.picture is not None)
        kept.add(stays(plan))
    assert len(kept) > 9  # some of these cards hold a part of the layers
    assert not apart[0]
    assert apart[-1]


def stays(plan: MemoryPlan) -> int:
    """Bytes of the transformer that stay on a card."""
    return min(plan.weights, max(0, plan.regions.layers - plan.regions.reserve))
