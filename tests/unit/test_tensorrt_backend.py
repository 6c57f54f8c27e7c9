"""The TensorRT engine against a library of the same API: profiles, memory, weights, errors."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.engine_checks import NO_TRUST, Trust, import_plugins, runs_on
from ltx2rt.backends.tensorrt import BITS, TrtEngine, tensor_bytes
from ltx2rt.bundle.manifest import Tensor
from ltx2rt.device.gpus import Gpu
from ltx2rt.errors import (
    BundleError,
    DeviceLostError,
    EngineError,
    InternalError,
    OptionError,
    ShapeError,
    UnsupportedError,
)
from ltx2rt.weights.codecs.engine_formats import ENGINE_FORMATS
from tests.unit.fake_tensorrt import SPEC, FakeContext, FakeDevice, make_library, write_engine

REBUILD = "ltx2rt build --checkpoint x"
Make = Callable[..., TrtEngine]


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice("")


@pytest.fixture
def context(device: FakeDevice) -> FakeContext:
    return FakeContext(device)


@pytest.fixture
def make(
    device: FakeDevice, context: FakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Make:
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))

    def make(weights: dict[str, Any] | None = None, **changes: Any) -> TrtEngine:
        device.closed = False
        loads = changes.pop("loads", True)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_library(device, context, loads=loads))
        trust = changes.pop("trust", NO_TRUST)
        path = write_engine(tmp_path, **changes)
        return TrtEngine(path, SPEC, weights or {}, REBUILD, lambda purpose: device, trust=trust)

    return make


def feeds(batch: int, start: float = 0.0) -> dict[str, Any]:
    x = np.arange(batch * 4, dtype=np.float32).reshape(batch, 4) + np.float32(start)
    return {"x": x, "unread": np.zeros(batch, np.float32)}


def test_values_come_back_and_profiles_follow_the_shapes(
    make: Make, context: FakeContext, device: FakeDevice
) -> None:
    w = np.array([1, 2, 3, 4], np.float32)
    with make({"w": w}) as engine:
        for batch in (2, 3, 16, 1):
            x = feeds(batch)
            np.testing.assert_array_equal(engine(x)["y"], x["x"] + w)
        assert context.profiles == [0, 1, 0]  # 2 and 3 share one; 16 needs the other
        assert context.scratch[1] == 100  # of the last run: one row
    assert device.blocks == {}
    assert device.closed


def test_an_engine_runs_on_another_thread_than_it_was_loaded_on(make: Make) -> None:
    """Frames decode on a thread of their own, which must get the CUDA context first."""
    w = np.ones(4, np.float32)
    with make({"w": w}) as engine, ThreadPoolExecutor(1) as pool:
        out = pool.submit(engine, feeds(1)).result()
        np.testing.assert_array_equal(out["y"], feeds(1)["x"] + w)


def test_weights_are_uploaded_once_and_told_apart_by_place(make: Make, device: FakeDevice) -> None:
    layers = [np.full(4, n, np.float32) for n in (10, 20)]
    with make() as engine:
        for _ in range(3):
            for w in layers:
                out = engine({**feeds(1), "w": w})["y"]
                np.testing.assert_array_equal(out, feeds(1)["x"] + w)
        assert device.uploads.count(16) == 6 + 2  # x every time, w once a layer


def test_weights_leave_the_device_with_their_arrays(make: Make, device: FakeDevice) -> None:
    with make() as engine:
        w = np.ones(4, np.float32)
        engine({**feeds(1), "w": w})
        held = len(device.blocks)
        del w
        assert len(device.blocks) == held - 1
        again = np.full(4, 5, np.float32)  # may lie where the first one was
        np.testing.assert_array_equal(
            engine({**feeds(1), "w": again})["y"], feeds(1)["x"] + np.float32(5)
        )
        assert len(device.blocks) == held


def test_outputs_stay_on_the_device_for_the_next_run(make: Make, device: FakeDevice) -> None:
    w = np.array([1, 2, 3, 4], np.float32)
    with make({"w": w}) as engine:
        given, memory = feeds(2), engine._memory
        device.activate()
        x, unread = memory.hold(given["x"]), memory.hold(given["unread"])
        device.uploads.clear()
        for turn in range(3):
            place = memory.buffer(f"y {turn % 2}", x.nbytes)
            bound = engine.bind({"x": x, "unread": unread}, lambda name, size, at=place: at)
            engine.bind_weights({})
            engine.enqueue()
            x = bound["y"]
        assert device.uploads == [w.nbytes]  # the weight, and nothing else
        np.testing.assert_array_equal(device.read(x.address, x.shape), given["x"] + 3 * w)
        with pytest.raises(ShapeError, match="x is int64, expected float32"):
            engine.bind({"x": dataclasses.replace(x, dtype=np.dtype(np.int64)), "unread": unread})
    assert device.blocks == {}


def test_engines_share_memory_until_the_last_is_closed(
    make: Make, device: FakeDevice, tmp_path: Path
) -> None:
    make().close()  # the library is there
    device.closed = False
    memory = DeviceMemory(device)
    w = np.ones(4, np.float32)
    path = write_engine(tmp_path)
    first, second = (TrtEngine(path, SPEC, {"w": w}, REBUILD, memory=memory) for _ in range(2))
    y = first(feeds(1))["y"]
    np.testing.assert_array_equal(
        second({"x": y, "unread": np.zeros(1, np.float32)})["y"], feeds(1)["x"] + 2
    )
    first.close()
    first.close()
    assert not device.closed
    assert device.blocks
    second.close()
    assert device.closed
    assert device.blocks == {}
    assert memory.closed


def test_inputs_that_the_engine_does_not_read_stay_on_the_host(
    make: Make, context: FakeContext
) -> None:
    with make({"w": np.zeros(4, np.float32)}) as engine:
        engine(feeds(2))
    assert set(context.shapes) == {"x"}
    assert set(context.addresses) == {"x", "w", "y"}


def test_requests_outside_every_bucket_are_refused(make: Make) -> None:
    with (
        make({"w": np.zeros(4, np.float32)}) as engine,
        pytest.raises(ShapeError, match=r"toy.*nearest is large: B=33 is not in 1\.\.32"),
    ):
        engine(feeds(33))


def test_wrong_weights_are_our_bug(make: Make) -> None:
    with make() as engine:
        with pytest.raises(InternalError, match="no weight w"):
            engine(feeds(1))
        with pytest.raises(InternalError, match="has 8 bytes, its engine takes 16"):
            engine({**feeds(1), "w": np.zeros(2, np.float32)})


def test_a_failed_run_names_component_and_backend(make: Make, context: FakeContext) -> None:
    context.fail = True
    with (
        make({"w": np.zeros(4, np.float32)}) as engine,
        pytest.raises(EngineError, match=r"TensorRT-RTX 1\.7\.1\.116 refuses the run in toy"),
    ):
        engine(feeds(1))


def test_a_run_that_is_refused_since_the_gpu_is_lost(
    make: Make, context: FakeContext, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library says only that it refuses."""

    def lose() -> None:
        raise DeviceLostError("the GPU was lost")

    context.fail = True
    monkeypatch.setattr(device, "raise_if_lost", lose)
    with make({"w": np.zeros(4, np.float32)}) as engine, pytest.raises(DeviceLostError):
        engine(feeds(1))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"backend_version": "1.6.0.5"}, BundleError, r"1\.6\.0\.5 and 1\.7\.1\.116.*ltx2rt build"),
        ({"targets": ("sm120",)}, BundleError, "sm120 and this GPU .a card. is sm89.*ltx2rt build"),
        ({"loads": False}, EngineError, "cannot load .*the engine is broken"),
        ({"schema": 9}, BundleError, "schema 9"),
        ({"targets": "sm89"}, BundleError, "targets"),
    ],
)
def test_engines_that_cannot_run_here(
    make: Make, device: FakeDevice, changes: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        make(**changes)
    assert device.blocks == {}


def test_version_compatible_engines_load_in_other_versions(make: Make) -> None:
    """They hold code of the host, which the library loads only if the user says so."""
    other = {"backend_version": "1.6.0.5", "version_compatible": True}
    make({}, trust=Trust(host_code=True), **other).close()
    with pytest.raises(BundleError, match=r"native code.*allow it \(engine_host_code\)"):
        make({}, **other)


def test_kernels_are_compiled_once_for_all_processes(
    make: Make, context: FakeContext, device: FakeDevice, tmp_path: Path
) -> None:
    """TensorRT-RTX compiles when an engine first runs; what it compiled is kept."""
    w = {"w": np.zeros(4, np.float32)}

    def run(*batches: int) -> int:
        before = context.compilations
        with make(w) as engine:
            for batch in batches:
                engine(feeds(batch))
        return context.compilations - before

    assert run(1, 2, 1) == 2
    assert run(1, 2) == 0
    (kept,) = (tmp_path / "cache/kernels").iterdir()
    assert kept.name.startswith("toy-")
    assert kept.name.endswith("-a-card.bin")
    make(w).close()  # nothing was run: nothing is written
    kept.write_bytes(b"of another driver")
    assert run(2) == 1
    assert kept.read_bytes() == b"K2;"
    device.gpu = Gpu("another card", "sm89", 2**20)
    assert run(2) == 1
    kept.unlink()
    kept.mkdir()  # cannot be written: the run is as good
    device.gpu = Gpu("a card", "sm89", 2**20)
    assert run(2) == 1


def test_closing_twice_is_closing_once(make: Make, device: FakeDevice) -> None:
    with make({"w": np.zeros(4, np.float32)}) as engine:
        engine.close()
    assert device.closed


def test_plugins_are_imported_and_must_be_those_of_the_build(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "toy_plugins.py"
    module.write_text("REGISTERED = True\n", encoding="utf-8")
    digests = import_plugins(("toy_plugins",))
    del sys.modules["toy_plugins"]
    trust = Trust(plugin_modules=("toy_plugins", "no_such_plugins"))
    with pytest.raises(BundleError, match=r"toy_plugins, which would run code.*plugin_modules"):
        make({}, plugins=digests)
    assert "toy_plugins" not in sys.modules
    make({}, plugins=digests, trust=trust).close()
    assert sys.modules.pop("toy_plugins").REGISTERED
    module.write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    with pytest.raises(
        BundleError, match=r"toy .*other plugins: toy_plugins changed.*ltx2rt build"
    ):
        make({}, plugins=digests, trust=trust)
    assert "toy_plugins" not in sys.modules  # hashed before it is imported
    with pytest.raises(OptionError, match="'no_such_plugins' cannot be imported"):
        make({}, plugins={"no_such_plugins": "0" * 64}, trust=trust)


def test_missing_library_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UnsupportedError, match="pip install tensorrt-rtx-cu1"):
        TrtEngine(path, SPEC, {}, REBUILD)
    device = FakeDevice("")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_library(device, FakeContext(device)))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(UnsupportedError, match=r"cuda-python.*pip install .*\[gpu\]'"):
        TrtEngine(path, SPEC, {}, REBUILD)


def test_targets() -> None:
    assert runs_on(("sm89", "sm120"), "sm120")
    assert not runs_on(("sm89",), "sm90")
    assert runs_on(("sm80+",), "sm90")
    assert not runs_on(("sm80+",), "sm75")


def test_bytes_of_weights() -> None:
    assert tensor_bytes(Tensor(name="w", dtype="bfloat16", shape=(3, 5))) == 30
    assert tensor_bytes(Tensor(name="w", dtype="float8_e4m3fn", shape=(3, 5))) == 15
    assert tensor_bytes(Tensor(name="w", dtype="int4", shape=(3, 5))) == 8
    assert ENGINE_FORMATS  # the formats whose dtypes must be in the table
    assert {"float8_e4m3fn", "float4_e2m1", "int8", "int4"} <= set(BITS)
