"""Engines that hold their weights, one a layer, behind the face of one engine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.layered import LayeredEngine
from ltx2rt.bundle.load_weights import layer_number
from ltx2rt.engine import Engine
from ltx2rt.errors import BundleError
from tests.unit.fake_tensorrt import SPEC, FakeContext, FakeDevice, make_library, write_engine


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    made = FakeDevice("")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_library(made, FakeContext(made)))
    return made


def feeds(batch: int) -> dict[str, np.ndarray]:
    x = np.arange(batch * 4, dtype=np.float32).reshape(batch, 4)
    return {"x": x, "unread": np.zeros(batch, np.float32)}


def test_the_layer_chooses_the_engine_and_all_share_their_memory(
    device: FakeDevice, tmp_path: Path
) -> None:
    paths = {i: write_engine(tmp_path, held=10.0 * i) for i in (0, 1, 3)}
    with LayeredEngine(paths, SPEC, "", DeviceMemory(device)) as engine:
        assert isinstance(engine, Engine)
        for batch in (2, 16):
            for layer in (3, 0, 1):
                given = feeds(batch)
                out = engine({**given, **layer_number(layer)})["y"]
                np.testing.assert_array_equal(out, given["x"] + np.float32(10 * layer))
            assert len(device.blocks) == 3  # x, y and the activations, of whichever layer runs
    assert device.blocks == {}
    assert device.closed
    engine.close()


def test_one_bad_engine_frees_the_others(device: FakeDevice, tmp_path: Path) -> None:
    paths = {
        0: write_engine(tmp_path, held=1.0),
        1: write_engine(tmp_path, held=2.0, backend_version="1.6.0.0"),
    }
    with pytest.raises(BundleError, match=r"1\.6\.0\.0.*ltx2rt build again"):
        LayeredEngine(paths, SPEC, "ltx2rt build again", DeviceMemory(device))
    assert device.closed
