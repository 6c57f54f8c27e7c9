"""Frames finished on the simulated GPU: tiles, 8-bit RGB and I420 equal those of numpy bit for
bit, come down alone and beside the tiles that follow, and each mistake that could be made shows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ltx2rt
from ltx2rt.backends.device_frames import DeviceFrames
from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.cli import generate
from ltx2rt.config import RuntimeConfig
from ltx2rt.device import cuda
from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import EngineError
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.color import PackedForm, pack_yuv422p10, rgb_to_i420, to_uint8
from ltx2rt.names import VIDEO_BLEND, VIDEO_YUV422
from ltx2rt.pipelines.decoding import decode_video
from ltx2rt.pipelines.device_decoding import device_frames, device_tiles
from ltx2rt.pipelines.engines import Engines
from ltx2rt.progress import Job
from ltx2rt.results import clip
from ltx2rt.sampling.noise import TorchGenerator
from tests.once import made_once
from tests.simulator.build import build_engine_bundle
from tests.simulator.driver import SimulatedDriver, simulated
from tests.simulator.fixtures import Simulate
from tests.simulator.host_twin import use_host_engines
from tests.simulator.tensorrt import make_module

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx", "kernels")

#: frames, height and width of the clip; in tiles of 64 pixels and 16 frames
FRAMES, HEIGHT, WIDTH = 25, 96, 128
TILED = "64x16:32x8"


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def decoder_bundle(
    demo_model: dict[str, Path], demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of the simulated decoder alone."""

    def make(folder: Path) -> dict[str, Path]:
        target = folder / "decoder.bundle"
        with simulated(), pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx"))
            build_engine_bundle(
                demo_bundle, demo_model, target, "--shapes", f"{WIDTH}x{HEIGHT}x{FRAMES}",
                "--components", "video_decoder",
            )  # fmt: skip
        return {"bundle": target}

    return made_once(tmp_path_factory, "simulated-decoder", make)["bundle"]


@contextmanager
def engines_of(bundle: Path, **runtime: Any) -> Iterator[Engines]:
    engines = Engines(ltx2rt.open_bundle(bundle), RuntimeConfig(**runtime))
    try:
        yield engines
    finally:
        engines.close()


def latent_of(engines: Engines) -> F32:
    channels = engines.source.model.latent_channels
    return np.random.default_rng(7).standard_normal((1, channels, 4, 3, 4), np.float32)


def decoded(engines: Engines, tiling: str, form: PackedForm | None, job: Job | None = None) -> F32:
    chunks = decode_video(
        engines, TorchGenerator(0), job or Job(), latent_of(engines), tiling, form
    )
    return np.concatenate(list(chunks))


def twin(bundle: Path, tiling: str, form: PackedForm | None) -> Array:
    """The same engine on host arrays, blended and converted by numpy."""
    with pytest.MonkeyPatch.context() as patch, engines_of(bundle) as engines:
        use_host_engines(patch)
        frames = decoded(engines, tiling, form)
    assert frames.dtype == np.float32
    if form is None:
        return frames
    if form == "i420":
        return rgb_to_i420(frames)[0]
    if form == "yuv422p10":
        return pack_yuv422p10(frames)[0]
    return clip.truncated_uint8(frames) if form == "rgb" else to_uint8(frames)[0]


@pytest.mark.parametrize(
    ("tiling", "form"),
    [
        ("none", "i420"),
        (TILED, "i420"),
        (TILED, "rgb"),
        ("none", "rgb_rounded"),
        (TILED, "yuv422p10"),
        (TILED, None),
    ],
)
def test_frames_are_those_of_numpy(
    simulate: Simulate, decoder_bundle: Path, tiling: str, form: PackedForm | None
) -> None:
    want = twin(decoder_bundle, tiling, form)
    gpu = simulate(memory_bytes=1 << 30)
    job = Job()
    with engines_of(decoder_bundle) as engines:
        found = decoded(engines, tiling, form, job)
    assert not job.host_work
    assert found.dtype == want.dtype
    np.testing.assert_array_equal(found, want)
    assert len(np.unique(want)) > 50  # a picture, not a plane
    assert gpu.counters().live_bytes == 0


def test_only_bytes_come_down_beside_the_tiles_that_follow(
    simulate: Simulate, decoder_bundle: Path
) -> None:
    gpu = simulate(memory_bytes=1 << 30)
    with engines_of(decoder_bundle, residency="resident") as engines:
        decoded(engines, TILED, "i420")  # weights are up, memory is taken
        before, start = gpu.counters(), len(gpu.operations())
        found = decoded(engines, TILED, "i420")
        counters, work = gpu.counters() - before, gpu.operations()[start:]
        download = int(device_frames(engines).memory.device.download.handle)
    slices = (counters.dtoh_bytes - found.size) // 256  # each with its count of NaN
    assert counters.dtoh_bytes == found.size + slices * 256
    assert slices <= -(-FRAMES // 8) + 1
    assert counters.hidden_synchronizations == 0
    assert counters.pageable_bytes == 0
    tiles = [o for o in work if o.kind == "call" and o.label == "video"]
    assert len(tiles) == 3 * 2 * 3
    # the host waits for each tile, for each slice and its count of NaN, and at the end
    assert counters.synchronizations <= len(tiles) + 2 * slices + 4
    assert counters.allocations == 0
    downloads = [o for o in work if o.kind == "copy" and o.stream == download]
    beside = [d for d in downloads if any(gpu.may_overlap(d, tile) for tile in tiles)]
    last = -(-17 // 8) + 1  # of the last tiles, which have none beside them
    assert beside == downloads[:-last]
    sent = sum(o.bytes for o in work if o.direction == "htod")
    assert sent < 200_000  # tiles of the latent, and the weights of their pixels


def test_progress_and_cancelling(simulate: Simulate, decoder_bundle: Path) -> None:
    """Every tile is told when it is done; a cancelled clip leaves nothing on its way."""
    gpu = simulate(memory_bytes=1 << 30)
    seen: list[tuple[int, int]] = []
    with engines_of(decoder_bundle) as engines:
        decoded(engines, TILED, "rgb", Job(lambda p: seen.append((p.step, p.total))))
        assert seen[1:] == [(n, 18) for n in range(1, 19)]
        job = Job(lambda p: job.cancel.set() if p.step == 4 else None)
        with pytest.raises(ltx2rt.Cancelled):
            decoded(engines, TILED, "i420", job)
        stopped = decode_video(engines, TorchGenerator(0), Job(), latent_of(engines), TILED, "i420")
        next(stopped)
        stopped.close()
        np.testing.assert_array_equal(
            decoded(engines, TILED, "i420"), decoded(engines, TILED, "i420")
        )
    assert gpu.counters().live_bytes == 0
    assert gpu.counters().host_allocations == gpu.counters().host_frees


def test_what_is_not_a_number_stops_it(simulate: Simulate, decoder_bundle: Path) -> None:
    simulate(memory_bytes=1 << 30)
    with engines_of(decoder_bundle) as engines:
        latent = latent_of(engines)
        latent[0, 0, 1, 1, 1] = np.nan
        with pytest.raises(EngineError, match="decode video: frames came out as NaN"):
            list(decode_video(engines, TorchGenerator(0), Job(), latent, TILED, "i420"))


def test_what_is_not_a_number_is_let_through(simulate: Simulate, decoder_bundle: Path) -> None:
    """As float32, of which bytes are made where it is counted."""
    found: list[Array] = []
    for on_host in (True, False):
        with pytest.MonkeyPatch.context() as patch, engines_of(decoder_bundle, allow_nan=True) as e:
            if on_host:
                use_host_engines(patch)
            else:
                simulate(memory_bytes=1 << 30)
            latent, job = latent_of(e), Job()
            latent[0, 0, 1, 1, 1] = np.nan
            chunks = decode_video(e, TorchGenerator(0), job, latent, TILED, "i420")
            found.append(np.concatenate(list(chunks)))
            assert not job.host_work
    assert np.isnan(found[0]).any()
    assert not np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], found[0])


def test_the_host_blends_where_the_device_does_not(
    simulate: Simulate, decoder_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Floats come down then; progress, the job and a trace say why."""
    simulate(memory_bytes=1 << 30)
    with engines_of(decoder_bundle) as engines:
        frames = device_frames(engines)
        assert frames is not None
        wide = np.zeros((1, 128, 4, 9, 4), np.float32)
        tiles = device_tiles(engines, wide, TilingConfig.none(), TorchGenerator(0).randn)
        assert "288 were not built" in str(frames.reason_against(tiles, "i420"))
        older = DeviceFrames(frames.blend, {"i420": frames.finishers["i420"]})
        assert "leave as yuv422p10" in str(older.reason_against(tiles, "yuv422p10"))
        monkeypatch.setattr(type(frames.memory.tensors), "gap", lambda self: 1 << 20)
        details: list[str] = []
        job = Job(lambda p: details.append(p.detail))
        with ltx2rt.Trace() as trace:
            assert decoded(engines, TILED, "i420", job).dtype == np.float32
        reason = job.host_work["decode video"]
        assert "0.00 GiB are planned" in reason
        assert f"on the host: {reason}" in details
        assert trace.notes == (f"decode video on the host: {reason}",)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (VIDEO_BLEND, "no engines finish frames on the device: build it again"),
        (VIDEO_YUV422, "the bundle was built before frames could leave as yuv422p10: build it "
         "again"),
    ],
)  # fmt: skip
def test_a_bundle_without_the_graphs_says_to_build_it_again(
    simulate: Simulate,
    decoder_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    said: str,
) -> None:
    """The frames are the same; `ltx2rt generate` notes on stderr why the host made them."""
    want = twin(decoder_bundle, "none", None)
    simulate(memory_bytes=1 << 30)
    has, job = ltx2rt.Bundle.has, Job()
    monkeypatch.setattr(
        ltx2rt.Bundle, "has", lambda self, *names: missing not in names and has(self, *names)
    )
    with engines_of(decoder_bundle) as engines:
        found = decoded(engines, "none", "yuv422p10", job)
    np.testing.assert_array_equal(found, want)
    made = {"host_work": job.host_work, "output": "a.mp4", "seed": 1, "skipped": True}
    monkeypatch.setattr(generate, "generate", lambda asked, bundle: iter([made]))
    run = SimpleNamespace(quiet=False, json=False, trace=None)
    asked: Any = SimpleNamespace(run=run, output=SimpleNamespace(is_stdout=False))
    generate.make_and_say(asked, decoder_bundle)
    assert capsys.readouterr().err == f"ltx2rt: note: decode video on the host: {said}\n"


def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda._CudaStream, "wait", lambda self, event: None)


def no_clearing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.CudaDevice, "clear", lambda *_: None)


def early_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice is handed out before it is down."""
    monkeypatch.setattr(cuda._CudaEvent, "sync", lambda self: None)


@pytest.mark.parametrize("mistake", [no_wait, no_clearing, early_reuse])
def test_mistakes_show(simulate: Simulate, decoder_bundle: Path, mistake: object) -> None:
    want = twin(decoder_bundle, TILED, "i420")
    gpu = simulate(memory_bytes=1 << 30)
    with engines_of(decoder_bundle) as engines, pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        found = shown(engines, gpu)
        assert found is None or not np.array_equal(found, want)


def shown(engines: Engines, gpu: SimulatedDriver) -> U8 | None:
    """Frames, or None where the simulator or the runtime noticed a problem."""
    try:
        found = decoded(engines, TILED, "i420")
    except ltx2rt.Ltx2rtError:
        gpu.take_problems()
        return None
    return None if gpu.take_problems() else found


def test_frames_share_the_planned_memory(decoder_bundle: Path) -> None:
    """The plan holds a clip of the size that was built for, and nothing is allocated for it."""
    with simulated() as gpu, engines_of(decoder_bundle) as engines:
        engines.video_decoder()
        plan = engines.loader._card_of(RuntimeConfig()).plan
        assert plan.finishes_frames
        assert plan.finishes_floats
        assert "blended on the card" in plan.text()
        before = gpu.counters()
        decoded(engines, "auto", "i420")
        decoded(engines, "auto", None)
        assert (gpu.counters() - before).allocations == 0
        assert isinstance(device_frames(engines), DeviceFrames)
        assert isinstance(device_frames(engines).memory, DeviceMemory)
