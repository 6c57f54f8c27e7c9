"""On a CPU, layers that find no room in memory are read from the files at every use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ltx2rt.backends import layer_engines
from ltx2rt.backends.host_stack import HostStack
from ltx2rt.backends.layer_engines import LayerEngines
from ltx2rt.backends.stack import Call, LayerPlan, StackPlan
from ltx2rt.bundle.host_plan import HostPlan, plan_host
from ltx2rt.bundle.manifest import ComponentEntry
from ltx2rt.cli import doctor
from ltx2rt.engine import Array, EngineBase, EngineSpec, TensorSpec
from ltx2rt.errors import InternalError, UnsupportedError
from tests.unit.manifests import MANIFEST
from tests.unit.test_memory import bundle_of, component


def plan(memory: int, *, resident: bool = False, **others: ComponentEntry) -> HostPlan:
    """Four layers of 100 values of 4 bytes, the third of them in another component."""
    manifest = bundle_of(
        transformer_block=component(100, 100, 0, 100),
        transformer_block_plain=component(0, 0, 100, 0),
        transformer_head=component(20),
        text_block=component(50, 50),
        video_decoder=component(30),
        **others,
    )
    return plan_host(manifest, memory, resident=resident)


@pytest.mark.parametrize(
    ("memory", "kept"),
    [
        (4 * 560, 4),  # three quarters of it hold the head and four layers
        (4 * 560 - 4, 2),  # with two layers kept, a third one is loaded beside them
        (4 * 293, 0),
        (4 * 294, 1),
        (4 * 120, 0),
    ],
)
def test_as_many_layers_stay_as_find_room(memory: int, kept: int) -> None:
    made = plan(memory)
    assert made.layers == (400,) * 4
    assert (made.kept, made.streams, made.keep_text) == (kept, kept < 4, False)


def test_what_stays_between_clips_comes_first() -> None:
    assert plan(4 * 800, resident=True).keep_text
    made = plan(4 * 700, resident=True)  # all fits but for the text encoder's second layer
    assert (made.kept, made.keep_text) == (4, False)
    made = plan(4 * 640, resident=True)
    assert (made.kept, made.keep_text) == (2, False)
    assert plan(4 * 640).kept == 4


def test_a_layer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"one layer .* in fp32, .*--precision int8-wo"):
        plan(4 * 120 - 1)
    assert plan_host(MANIFEST, 1, resident=False).layers == ()  # a bundle without a transformer


def test_the_plan_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    gib = 1 << 28  # values of 4 bytes
    manifest = bundle_of(transformer_block=component(*[gib] * 48))
    told = doctor.host_report(manifest, 32 << 30)
    assert told is not None
    assert (told["layers"], told["kept_layers"], told["streams_layers"]) == (48, 23, True)
    assert told["text"].startswith(
        "the 48 layers of the transformer take 48.0 GiB in fp32, and the memory is 32.0 GiB: 23 "
        "stay, the others are read from the files at every use"
    )
    assert str(doctor.host_report(manifest, 64 << 30)).count("all stay") == 1
    small = doctor.host_report(manifest, 1 << 28)
    assert small is not None
    assert "one layer of the transformer" in small["text"]
    on_gpu = dataclasses.replace(component(gib), precision="bf16")
    assert doctor.host_report(bundle_of(transformer_block=on_gpu), 1) is None


class Add(EngineBase):
    """`y = x + w`."""

    spec = EngineSpec(
        "block", (TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),)
    )

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": tensors["x"] + tensors["w"]}

    def close(self) -> None:
        pass


class Holding(EngineBase):
    """`y = x + w` with `w` inside; a list says when engines are made and closed."""

    def __init__(self, kind: str, weights: Mapping[str, Array], seen: list[str]) -> None:
        self._w, self._seen = weights["w"], seen
        self._name, self.spec = f"{kind}{int(self._w[0])}", Add.spec
        seen.append(self._name)

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        assert "w" not in tensors
        return {"y": tensors["x"] + self._w}

    def close(self) -> None:
        self._seen.append(f"-{self._name}")


@pytest.mark.parametrize("kept", [None, 1])
def test_layers_that_hold_their_weights(kept: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine a layer, made when it is needed, and made anew when masks come or go."""
    seen: list[str] = []
    monkeypatch.setattr(layer_engines, "give_back", lambda: seen.append("tidied"))
    masked = EngineSpec("block", (*Add.spec.inputs, TensorSpec("mask", "float32", (1,))), ())
    engines = {
        kind: LayerEngines(spec, lambda w, kind=kind: Holding(kind, w, seen))
        for kind, spec in (("m", masked), ("u", Add.spec))
    }

    def engine(name: str, index: int) -> Any:
        return engines["m"] if name == "block" else Add()

    def load(name: str, index: int) -> dict[str, Array]:
        return {"w": np.full(1, index, np.float32)}

    layers = tuple(LayerPlan("block", index) for index in (1, 2))
    made = StackPlan(head="head", layers=layers, tail="tail", gives={"y": "x"})
    stack = HostStack(made.parts(engine, load, lambda *_: engines["u"]), kept_layers=kept)
    assert stack.masks == {"mask"}
    x = np.ones(1, np.float32)
    mask = stack.begin({"mask": x})
    streams = kept is not None
    for constants, expected in (
        (None, ["m1", "m2"]),  # without constants nothing says that there is no mask
        (stack.begin({}), ["-m1", "u1", "-m2", "u2"]),
        (stack.begin({}), []),
        (mask, ["-u1", "m1", "-u2", "m2"]),
    ):
        if streams:  # the second layer goes when it has run
            kind = "m" if constants in (None, mask) else "u"
            expected = [e for e in expected if "2" not in e] + [f"{kind}2", f"-{kind}2"]
        seen.clear()
        (out,) = stack([Call({"x": x}, constants)])
        assert out["y"] == 4
        made_now = [e for e in seen if e[0] in "mu"]
        assert seen.count("tidied") == len(made_now)  # the heap, after each that is made
        assert [e for e in seen if e != "tidied"] == expected
    seen.clear()
    stack.close()
    assert seen == ["-m1"] + ["-m2"] * (not streams)
    with pytest.raises(InternalError, match="weights of a layer inside"):
        engines["m"]({})


@pytest.mark.parametrize(("kept", "later"), [(None, []), (3, []), (2, [3]), (0, [1, 2, 3])])
def test_streamed_layers_are_loaded_at_every_pass(kept: int | None, later: list[int]) -> None:
    loads: list[int] = []
    numbers = {"head": 0, "tail": 4}

    def load(name: str, index: int) -> dict[str, Array]:
        number = numbers.get(name, index + 1)
        loads.append(number)
        return {"w": np.full(1, 10.0**number, np.float32)}

    layers = tuple(LayerPlan("block", index) for index in range(3))
    made = StackPlan(head="head", layers=layers, tail="tail", gives={"y": "x"})
    engine: Any = Add()
    stack = HostStack(made.parts(lambda name, index: engine, load), kept_layers=kept)
    x = np.zeros(1, np.float32)
    for expected in ([0, 1, 2, 3, 4], later):
        loads.clear()
        first, second = stack([Call({"x": x}), Call({"x": x + 1})])  # one load for both
        assert (first["y"], second["y"]) == (11111, 11112)
        assert loads == expected
