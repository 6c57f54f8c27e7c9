"""What the device code asks of the driver, and takes of the host, on the simulated GPU without
contents: bundles of the demo model, whose clips have as many tokens and pixels as a real one's.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ltx2rt
from benchmarks.host_numpy import AUDIO, FRAME_RATE, GUIDED, VIDEO
from benchmarks.host_row import Row
from benchmarks.tiny_model import bundle_of
from ltx2rt.bundle.loader import Loader
from ltx2rt.components.transformer import ModalityInput, Transformer
from ltx2rt.config import RuntimeConfig
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.device.device import Pinned
from ltx2rt.latents.state import LatentState, make_audio_state, make_video_state
from ltx2rt.names import ONE_STAGE, TRANSFORMER_BLOCK, TRANSFORMER_STACK
from tests.simulator.build import build_engine_bundle
from tests.simulator.driver import Counters, Setup, SimulatedDriver, simulated
from tests.simulator.tensorrt import make_module

WIDTH, HEIGHT, FRAMES = 1920, 1088, 121
MEMORY = 141 << 30
_WHERE = "simulated; demo model, 1920x1088x121"


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where the driver's counters stand."""

    counters: Counters
    calls: int
    seconds: float

    @classmethod
    def now(cls, gpu: SimulatedDriver) -> _Seen:
        return cls(gpu.counters(), gpu.driver_calls, time.process_time())

    def since(self, earlier: _Seen) -> _Seen:
        return _Seen(
            self.counters - earlier.counters,
            self.calls - earlier.calls,
            self.seconds - earlier.seconds,
        )


def rows(folder: Path) -> Iterator[Row]:
    """One after another, as they are measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx"))
        patch.setenv("LTX2RT_CACHE", str(folder / "cache"))
        patch.setattr(CudaDevice, "pinned", _zeros)
        bundle = _bundle(folder)
        with simulated(Setup(memory_bytes=MEMORY, contents=False)) as gpu:
            yield from _forward(gpu, bundle)
            yield from _clip(gpu, bundle)


_pinned = CudaDevice.pinned


def _zeros(device: CudaDevice, size: int) -> Pinned:
    """Pinned memory that is no NaN: what comes down has no contents."""
    memory = _pinned(device, size)
    memory.array[:] = 0
    return memory


def _bundle(folder: Path) -> Path:
    """Of simulated engines, with a bucket for that clip."""
    from ltx2rt_export.demo import write_demo_model

    model = write_demo_model(folder / "model")
    source = bundle_of(model, folder / "demo.bundle")
    shape = f"{WIDTH}x{HEIGHT}x{FRAMES}"
    with simulated():
        return build_engine_bundle(
            source,
            model,
            folder / "gpu.bundle",
            "--shapes",
            shape,
            "--components",
            ",".join(ONE_STAGE),
        )


def _forward(gpu: SimulatedDriver, bundle: Path) -> Iterator[Row]:
    """The third pass of a stage, with latents of the host."""
    opened = ltx2rt.open_bundle(bundle)
    loader = Loader(opened)
    stack = loader.stack(TRANSFORMER_STACK, RuntimeConfig())
    options = opened.options(TRANSFORMER_BLOCK)
    transformer = Transformer(stack, options)
    video, audio = (
        _given(state, options[name])
        for name, state in (
            ("video", make_video_state(VIDEO, FRAME_RATE)),
            ("audio", make_audio_state(AUDIO)),
        )
    )
    with transformer.stage():
        for _ in range(2):
            transformer(video, audio)
        before = _Seen.now(gpu)
        transformer(video, audio)
        seen = _Seen.now(gpu).since(before)
    stack.close()
    loader.close()
    yield from _counted(
        seen,
        f"{_WHERE}; the third pass of a stage, latents from the host",
        bytes_up="bytes up a forward, after the first of a stage",
        calls="driver's calls a forward, replayed",
        launches="launches of a replayed forward",
        allocations="allocations a forward",
        waits="synchronisations a forward",
    )


def _given(state: LatentState, facts: dict[str, int]) -> ModalityInput:
    context = facts["caption_channels"] or facts["context_dim"]
    return ModalityInput(
        latent=state.latent,
        sigma=np.ones(1, np.float32),
        timesteps=state.mask[..., 0],
        positions=state.positions,
        context=np.zeros((1, 1024, context), np.float32),
    )


def _clip(gpu: SimulatedDriver, bundle: Path) -> Iterator[Row]:
    """A guided clip: its third step, and its frames."""
    guidance = ltx2rt.GuidanceConfig(
        num_inference_steps=4,
        video=dataclasses.replace(GUIDED, stg_blocks=(1,)),
        audio=dataclasses.replace(GUIDED, stg_blocks=(1,)),
    )
    steps: list[_Seen] = []

    def look(progress: ltx2rt.Progress) -> None:
        if progress.stage == "stage_1":
            steps.append(_Seen.now(gpu))

    size = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES}
    with ltx2rt.OneStagePipeline(ltx2rt.open_bundle(bundle)) as pipe:
        clip = pipe(prompt="a bell", guidance=guidance, job=ltx2rt.Job(look), **size)
        yield from _step(steps[-1].since(steps[-2]))
        for _ in clip.frames_as("i420"):  # what was never run before is measured by the simulator
            pass
        before = _Seen.now(gpu)
        frames = sum(c.nbytes for c in clip.frames_as("i420"))
        yield from _decode(_Seen.now(gpu).since(before), frames)


def _step(seen: _Seen) -> Iterator[Row]:
    how = f"{_WHERE}; the last of 4 steps of 4 passes"
    yield Row(
        what="guided step of 4 passes on the device, 32,640 tokens",
        value=seen.seconds,
        unit="CPU seconds",
        bound=0.02,
        remark=how,
    )
    yield from _counted(
        seen,
        how,
        bytes_up="bytes up a guided step",
        calls="driver's calls a guided step",
        launches="launches of a guided step",
        allocations="allocations a step",
        waits="synchronisations a step",
    )


def _counted(
    seen: _Seen,
    how: str,
    *,
    bytes_up: str,
    calls: str,
    launches: str,
    allocations: str,
    waits: str,
) -> Iterator[Row]:
    """What the driver counted, under these names, with the bounds of a forward and of a step."""
    found = seen.counters
    yield Row(what=bytes_up, value=found.htod_bytes, unit="bytes", bound=20e6, remark=how)
    for what, value, bound in (
        (calls, seen.calls, 150),
        (launches, _launches(found), 1),
        (allocations, found.allocations + found.host_allocations + found.frees, 0),
        (waits, _waits(found), 1),
    ):
        yield Row(what=what, value=value, unit="calls", bound=bound, remark=how)


def _decode(seen: _Seen, frames: int) -> Iterator[Row]:
    how = f"{_WHERE}; {frames:,} of them are I420"
    yield Row(
        what="bytes down of a decoded clip",
        value=seen.counters.dtoh_bytes,
        unit="bytes",
        bound=0.4e9,
        remark=how,
    )
    yield Row(
        what="host work of decoding it, besides the encoder",
        value=seen.seconds,
        unit="CPU seconds",
        bound=1.5,
        remark=_WHERE,
    )


def _launches(found: Counters) -> int:
    """Of graphs, and of engines, copies and fills on the device beside them."""
    work = found.launches + found.dtod_calls + found.fills
    return found.graph_launches + work - found.graph_operations


def _waits(found: Counters) -> int:
    return found.synchronizations + found.hidden_synchronizations
