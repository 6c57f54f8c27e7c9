"""A diffusion decoder whose clip is finished on the simulated GPU: bit for bit what the host gives
with the same engines, for clips that are padded, in one tile and in many.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ltx2rt_export.engines.build as engine_build
from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.bundle.memory_plan import _decoder_bytes
from ltx2rt.components.device_tiles import DiffusionTiles
from ltx2rt.config import RuntimeConfig
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.engine import F32, Array, Engine, EngineSpec, TensorSpec
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.color import PackedForm, rgb_to_i420
from ltx2rt.names import DIFFUSION_CONTEXT, DIFFUSION_FEATURES, DIFFUSION_PIXELS
from ltx2rt.pipelines.decoding import decode_video
from ltx2rt.pipelines.device_decoding import device_tiles
from ltx2rt.pipelines.engines import Engines
from ltx2rt.progress import Job
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt_export.component import Component
from ltx2rt_export.device_graphs.graph_writer import GraphWriter
from ltx2rt_export.device_graphs.table import device_graphs
from ltx2rt_export.graph import ExportedGraph
from tests.once import made_once
from tests.parity.engine_models import builder
from tests.simulator.build import simulate_build
from tests.simulator.driver import simulated
from tests.simulator.fixtures import Simulate
from tests.simulator.host_twin import HostEngine
from tests.simulator.tensorrt import make_module

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx", "kernels")

CHANNELS = 3
#: facts of the published decoder, with a short reach, so that tiles and networks are small
OPTIONS: dict[str, Any] = {
    "scale_factors": {"time": 8, "height": 32, "width": 32},
    "latent_channels": CHANNELS,
    "patch_size": 4,
    "pixel_channels": CHANNELS,
    "border_patches": 1,
    "feature_channels": CHANNELS,
    "steps": 1,
    "prediction": "x0",
    "ghost_frames": 2,
    "min_latent_cells": [3, 3, 3],
    "feature_stride": [2, 2, 2],
    "min_feature_cells": [2, 2, 2],
    "halo_feature_cells": [1, 1, 1],
    "tile_bytes": 1 << 30,
}


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are kept in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))


def features_graph() -> ExportedGraph:
    """Every latent cell repeated over its feature cells; in time as the real stages grow it."""
    write = GraphWriter()
    last = write.op("Transpose", "video_latent", perm=[0, 2, 3, 4, 1])
    grown = write.op("Slice", repeated(write, last, 4), *map(write.integers, (3, 2**31 - 1, 1)))
    inputs = (TensorSpec("video_latent", "float32", ("B", CHANNELS, "Fl", "Hl", "Wl")),)
    outputs = {TensorSpec("features", "float32", ("B", "Fs", "Hs", "Ws", CHANNELS)): grown}
    return write.finish(DIFFUSION_FEATURES, inputs, outputs)


def context_graph() -> ExportedGraph:
    """Every feature cell repeated; the first frame is not dropped."""
    write = GraphWriter()
    inputs = (TensorSpec("features", "float32", ("B", "Fs", "Hs", "Ws", CHANNELS)),)
    outputs = {TensorSpec("context", "float32", ("B", "F", "Hc", "Wc", CHANNELS)): repeated(
        write, "features", 2
    )}  # fmt: skip
    return write.finish(DIFFUSION_CONTEXT, inputs, outputs)


def pixels_graph() -> ExportedGraph:
    """The context as colour, and some of the noise."""
    write, grid = GraphWriter(), ("B", "F", "Hc", "Wc")
    colour = write.op("Tile", "context", write.integers(1, 1, 1, 1, 16))
    level = write.op("Mul", "timestep", write.number(0.3))
    seen = write.op("Add", colour, write.op("Mul", "noisy_patches", level))
    inputs = (
        TensorSpec("noisy_patches", "float32", (*grid, 48)),
        TensorSpec("context", "float32", (*grid, CHANNELS)),
        TensorSpec("timestep", "float32", ("B",)),
    )
    outputs = {TensorSpec("predicted_patches", "float32", (*grid, 48)): seen}
    return write.finish(DIFFUSION_PIXELS, inputs, outputs)


def repeated(write: GraphWriter, value: str, times: int) -> str:
    scales = write.numbers([1, times, times, times, 1], [5])
    return write.op(
        "Resize", value, "", scales, mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


@dataclass(frozen=True)
class Built:
    """Components and the files of their engines, by name."""

    components: Mapping[str, Component]
    engines: Mapping[str, Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Engines of the three components and of the graphs beside them, for clips of 160x128x33."""
    parts = [features_graph(), context_graph(), pixels_graph()]
    parts[0] = replace(parts[0], component=replace(parts[0].component, options=OPTIONS))
    parts += device_graphs([part.component for part in parts])

    def make(folder: Path) -> dict[str, Path]:
        with simulated(), pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx"))
            patch.setattr(engine_build, "run_build", simulate_build)
            built = builder(folder / "cache", "160x128x33", options={DIFFUSION_FEATURES: OPTIONS})
            return {
                p.component.name: folder / built.build(p, "fp32", None, folder, Job()).file
                for p in parts
            }

    files = made_once(tmp_path_factory, "simulated-diffusion", make)
    return Built({p.component.name: p.component for p in parts}, files)


class Source:
    """Stands for a bundle: engines of a device, or the same ones on host arrays."""

    def __init__(self, built: Built, memory: DeviceMemory | None) -> None:
        self._built = built
        self._memory = memory

    def has(self, *names: str) -> bool:
        return all(name in self._built.components for name in names)

    def options(self, name: str) -> Mapping[str, Any]:
        return self._built.components[name].options

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        component = self._built.components[name]
        spec = EngineSpec(name, tuple(component.inputs), tuple(component.outputs))
        path = self._built.engines[name]
        if self._memory is None:
            return HostEngine(path, spec, {})
        return TrtEngine(path, spec, {}, "", memory=self._memory)


@contextmanager
def on_device(built: Built) -> Iterator[Engines]:
    memory = DeviceMemory(CudaDevice("a test")).opened()
    engines = Engines(Source(built, memory))  # type: ignore[arg-type]
    try:
        yield engines
    finally:
        engines.close()
        memory.close()


def latent_of(frames: int, rows: int, columns: int) -> F32:
    sizes = (1, CHANNELS, frames, rows, columns)
    return np.random.default_rng(5).uniform(-1, 1, sizes).astype(np.float32)


def decoded(
    engines: Engines, latent: F32, tiling: str, form: PackedForm | None, job: Job | None = None
) -> Array:
    chunks = decode_video(engines, TorchGenerator(3), job or Job(), latent, tiling, form)
    return np.concatenate(list(chunks))


@pytest.mark.parametrize(
    ("cells", "tiling", "form"),
    [
        ((5, 4, 5), "none", "i420"),
        ((5, 4, 5), "64x16:16x4", "i420"),
        ((5, 4, 5), "64x16:16x4", None),
        ((2, 2, 3), "none", "rgb"),
        ((2, 2, 4), "none", "yuv422p10"),
    ],
)
def test_frames_are_those_of_the_host(
    simulate: Simulate, built: Built, cells: tuple[int, int, int], tiling: str, form: Any
) -> None:
    from ltx2rt.media.color import pack_yuv422p10
    from ltx2rt.results.clip import truncated_uint8

    latent = latent_of(*cells)
    want = decoded(Engines(Source(built, None)), latent, tiling, None)  # type: ignore[arg-type]
    if form is not None:
        made = {"i420": lambda f: rgb_to_i420(f)[0], "rgb": truncated_uint8,
                "yuv422p10": lambda f: pack_yuv422p10(f)[0]}  # fmt: skip
        want = made[form](want)
    gpu, job = simulate(memory_bytes=1 << 30), Job()
    with on_device(built) as engines:
        found = decoded(engines, latent, tiling, form, job)
    assert not job.host_work
    assert len(found) == (cells[0] - 1) * 8 + 1
    np.testing.assert_array_equal(found, want)
    assert len(np.unique(want)) > 50
    assert gpu.counters().live_bytes == 0


def test_nothing_but_noise_and_frames_moves(simulate: Simulate, built: Built) -> None:
    """Features, contexts and pixels stay; frames come down beside later tiles."""
    gpu, latent = simulate(memory_bytes=1 << 30), latent_of(5, 4, 5)
    tiling = TilingConfig.parse("64x16:16x4")
    with on_device(built) as engines:
        tiles_of = device_tiles(engines, latent, tiling, TorchGenerator(0).randn)
        assert isinstance(tiles_of, DiffusionTiles)
        lengths = [sum(t.target.stop - t.target.start for t in axis) for axis in tiles_of.axes]
        found = decoded(engines, latent, "64x16:16x4", "i420")
        work, counters = gpu.operations(), gpu.counters()
    tiles = [o for o in work if o.kind == "call" and o.label == "predicted_patches"]
    assert len(tiles) > 8
    sent = sum(o.bytes for o in work if o.direction == "htod")
    noise = 3 * 4 * lengths[0] * lengths[1] * lengths[2]
    assert noise + 7 * latent.nbytes // 5 < sent < noise + 7 * latent.nbytes // 5 + 20_000
    assert counters.dtoh_bytes < found.nbytes + 20 * 256
    assert counters.hidden_synchronizations == 0


def test_what_takes_several_steps_is_on_the_host(
    simulate: Simulate, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(memory_bytes=1 << 30)
    options = {**OPTIONS, "steps": 2}
    monkeypatch.setattr(Source, "options", lambda self, name: options)
    latent, job = latent_of(2, 3, 3), Job()
    want = decoded(Engines(Source(built, None)), latent, "none", None)  # type: ignore[arg-type]
    with on_device(built) as engines:
        np.testing.assert_array_equal(decoded(engines, latent, "none", "rgb", job), want)
    assert job.host_work == {
        "decode video": "the diffusion decoder takes several steps to a picture"
    }


def test_the_plan_holds_what_is_held(simulate: Simulate, built: Built) -> None:
    """For the clip that engines were built for, in its automatic tiles."""
    simulate(memory_bytes=1 << 30)
    entries: Any = {
        name: SimpleNamespace(
            inputs=component.inputs,
            options=component.options,
            engines=(read_info(built.engines[name]),),
        )
        for name, component in built.components.items()
    }
    with on_device(built) as engines:
        tiles = device_tiles(
            engines, latent_of(5, 4, 5), TilingConfig.none(), TorchGenerator(0).randn
        )
    assert isinstance(tiles, DiffusionTiles)
    assert tiles.held_bytes <= _decoder_bytes(entries) <= 2 * tiles.held_bytes


def wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile takes the features of the clip's first corner."""
    cut = DiffusionTiles._cut

    def first(self: Any, group: Any, row: Any, column: Any) -> Any:
        moved = replace(column, source=slice(0, column.source.stop - column.source.start))
        return cut(self, group, row, moved)

    monkeypatch.setattr(DiffusionTiles, "_cut", first)


def no_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first frames of a context, which no frame belongs to, are not left out."""
    real = DiffusionTiles._from
    monkeypatch.setattr(
        DiffusionTiles, "_from", lambda self, context, first, count: real(self, context, 0, count)
    )


@pytest.mark.parametrize("mistake", [wrong_cut, no_shift])
def test_mistakes_show(simulate: Simulate, built: Built, mistake: Any) -> None:
    latent = latent_of(5, 4, 5)
    want = decoded(Engines(Source(built, None)), latent, "64x16:16x4", None)  # type: ignore[arg-type]
    simulate(memory_bytes=1 << 30)
    with on_device(built) as engines, pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        assert not np.array_equal(decoded(engines, latent, "64x16:16x4", None), want)
