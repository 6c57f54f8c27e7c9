"""Plans of stacks, and a stack of engines that hold their weights, one a layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.device_stack import DeviceStack
from ltx2rt.backends.host_stack import HostStack
from ltx2rt.backends.stack import Call, LayerPlan, StackPlan
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.components.stack_plans import text_plan, transformer_plan
from ltx2rt.errors import BundleError, InternalError
from tests.unit.fake_tensorrt import SPEC, FakeContext, FakeDevice, make_library, write_engine

#: weights inside the engines of head, three layers and tail, each of which gives `y = x + w`
HELD = {"head": (1.0,), "block": (10.0, 20.0, 30.0), "tail": (2.0,)}
PLAN = StackPlan(
    head="head",
    layers=tuple(LayerPlan("block", index) for index in range(3)),
    tail="tail",
    gives={"y": "x"},
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDevice:
    made = FakeDevice("")
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_library(made, FakeContext(made)))
    return made


def inputs(batch: int) -> dict[str, np.ndarray]:
    x = np.arange(batch * 4, dtype=np.float32).reshape(batch, 4)
    return {"x": x, "unread": np.zeros(batch, np.float32)}


def make_stack(device: FakeDevice, folder: Path) -> DeviceStack:
    memory = DeviceMemory(device).opened()

    def engine(name: str, index: int) -> TrtEngine:
        path = write_engine(folder, held=HELD[name][index])
        return TrtEngine(path, SPEC, {}, "", memory=memory)

    return DeviceStack(PLAN.parts(engine, lambda name, index: {}), memory)


def test_every_layer_runs_its_own_engine_in_shared_memory(
    device: FakeDevice, tmp_path: Path
) -> None:
    stack = make_stack(device, tmp_path)
    assert stack.num_layers == 3
    for batch in (2, 16):
        given = inputs(batch)
        unread = stack.begin({"unread": given["unread"], "nobody takes this": np.zeros(3)})
        calls = [Call({"x": given["x"] + np.float32(n)}, unread) for n in range(2)]
        for number, out in enumerate(stack(calls)):
            want = given["x"] + np.float32(number + 1 + 10 + 20 + 30 + 2)
            np.testing.assert_array_equal(out["y"], want)
        # of each call the x that went in and two hidden states; what is unread; scratch memory
        assert len(device.blocks) == 2 * 3 + 1 + 1
        unread.close()
    assert len(stack._memory.kernels) == 1  # engines that differ in their weights share kernels
    stack.close()
    assert device.blocks == {}
    assert device.closed
    assert len(list((tmp_path / "cache/kernels").iterdir())) == 1


def test_inputs_that_come_with_a_layer_stay_on_the_device(
    device: FakeDevice, tmp_path: Path
) -> None:
    """Low-rank LoRA inputs are inputs of the engine and weights of the layer."""
    memory = DeviceMemory(device).opened()
    weights = {"w": np.full(4, 5, np.float32), "unread": np.zeros(3, np.float32)}
    loads: list[int] = []

    def load(name: str, index: int) -> dict[str, np.ndarray]:
        loads.append(index)
        return weights

    engine = TrtEngine(write_engine(tmp_path), SPEC, {}, "", memory=memory)
    stack = DeviceStack(PLAN.parts(lambda name, index: engine, load), memory)
    x = inputs(3)["x"]
    for _ in range(2):
        device.uploads.clear()
        (out,) = stack([Call({"x": x})])
        np.testing.assert_array_equal(out["y"], x + np.float32(5 * 5))
    assert device.uploads == [x.nbytes]
    assert loads == [0, 0, 1, 2, 0]  # head, three layers and tail, once each
    stack.close()
    assert device.blocks == {}


def test_constants_belong_to_their_stack(device: FakeDevice, tmp_path: Path) -> None:
    stack = make_stack(device, tmp_path)
    host = HostStack(stack._parts)
    with pytest.raises(InternalError, match="another stack"):
        stack([Call(inputs(1), host.begin({}))])
    with pytest.raises(InternalError, match="another stack"):
        host([Call(inputs(1), stack.begin({}))])
    stack.close()


@pytest.mark.parametrize(
    "served",
    [
        {"transformer_block": (0, 2)},
        {"transformer_block": (0, 1), "transformer_block_plain": (1,)},
        {"transformer_block": ()},
    ],
)
def test_a_layer_is_run_by_one_component(served: dict[str, Sequence[int]]) -> None:
    with pytest.raises(BundleError, match=r"every layer .* one component.*build the bundle again"):
        transformer_plan({"modalities": "av"}, served)


def test_plans() -> None:
    served = {"transformer_block": (0, 2), "transformer_block_plain": (1,)}
    plan = transformer_plan({"modalities": "audio"}, served)
    assert [(p.block, p.index) for p in plan.layers] == [
        ("transformer_block", 0), ("transformer_block_plain", 1), ("transformer_block", 2),
    ]  # fmt: skip
    assert plan.gives == {"audio_hidden_out": "audio_hidden"}
    layers = [["text_block", "sliding"], ["text_block_full", "full"], ["text_block", "sliding"]]
    text = text_plan({"layers": layers})
    assert [(p.block, p.index) for p in text.layers] == [
        ("text_block", 0), ("text_block_full", 0), ("text_block", 1),
    ]  # fmt: skip
    assert text.layers[1].takes["attention_bias"] == "full_bias"
    assert text.components == ("text_head", "text_block", "text_block_full", "text_tail")
