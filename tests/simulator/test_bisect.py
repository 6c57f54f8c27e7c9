"""`ltx2rt verify --bisect` on simulated engines: a device that computes one node wrongly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

import tests.simulator.engine_program as engine_program
from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.engine_file import EngineInfo, read_info
from ltx2rt.bundle.loader import Loader
from ltx2rt.config import RuntimeConfig
from ltx2rt.weights.floats import as_dtype
from ltx2rt_export.bisect import engine_side
from ltx2rt_export.bisect.lineage import Lineage
from ltx2rt_export.bisect.marks import typed
from ltx2rt_export.bisect.ort_side import OrtSide
from ltx2rt_export.bisect.search import difference
from ltx2rt_export.engines.builder import EngineRequest, OnStep
from ltx2rt_export.engines.process import Outcome as Built
from tests.parity.command_line import expect_user_error, ltx2rt, only_components
from tests.simulator.build import simulate_build
from tests.simulator.engine_program import Program
from tests.simulator.fixtures import EngineBundle, Simulate

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


class Builder:
    """The simulated builder. `requests`: what it was asked for; `engines`: what it gave."""

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []
        self.engines: list[bytes] = []

    def __call__(
        self, component: str, request: EngineRequest, on_step: OnStep | None = None
    ) -> Built:
        self.requests.append(request)
        built = simulate_build(component, request, on_step)
        self.engines.append(Path(request.output).read_bytes())
        return built


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """What builds the engines that are asked; what they leave lies in the test's own folder."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    builder = Builder()
    monkeypatch.setattr(engine_side, "run_build", builder)
    return builder


def plant(patch: pytest.MonkeyPatch, tensor: str) -> None:
    """From now on the device gives 1.5 times a tensor of every graph that computes it."""
    convert = engine_program.float32_graph

    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        model = convert(model)
        nodes = list(model.graph.node)
        for i, node in enumerate(nodes):
            if tensor in node.output:
                node.output[list(node.output).index(tensor)] = "right"
                nodes.insert(i + 1, onnx.helper.make_node("Mul", ["right", "factor"], [tensor]))
                factor = onnx.numpy_helper.from_array(np.float32(1.5), "factor")
                model.graph.initializer.append(factor)
                del model.graph.node[:]
                model.graph.node.extend(nodes)
                break
        return model

    patch.setattr(engine_program, "float32_graph", wrong)
    patch.setattr(engine_program, "_SESSIONS", {})


def linear_of(bundle: Path, component: str) -> onnx.NodeProto:
    """One in the middle of a component."""
    entry = open_bundle(bundle).component(component)
    graph = onnx.load(bundle / entry.graph, load_external_data=False).graph
    found = [node for node in graph.node if node.op_type in ("MatMul", "Conv")]
    return found[len(found) // 2]


def info_of(bundle: Path, component: str) -> EngineInfo:
    return read_info(bundle / open_bundle(bundle).component(component).engines[0].file)


@pytest.mark.parametrize(
    ("component", "made", "layer"),
    [
        ("transformer_block_unmasked", "transformer_block", 1),  # weights are inputs
        ("transformer_tail", "transformer_tail", 0),  # weights are bound when it is loaded
    ],
)
def test_the_node_that_a_device_computes_wrongly(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    builder: Builder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    component: str,
    made: str,
    layer: int,
) -> None:
    bundle, case = engine_bundle("bf16"), tmp_path / "case"
    node = linear_of(bundle, component)
    gpu = simulate()
    only_components(monkeypatch, made)
    plant(monkeypatch, node.output[0])
    outcome = ltx2rt(
        "verify", bundle, "--bisect", component, "--layer", layer, "-o", case, "--json"
    )
    assert outcome.code == 1, outcome.err
    found = outcome.json
    assert (found["node"], found["tensor"]) == (node.name, node.output[0])
    assert found["rel_rms"] == pytest.approx(0.5, rel=0.02)
    assert found["alone"] == pytest.approx(0.5, rel=0.02)
    assert found["operators"] == [node.op_type]
    assert outcome.err.count("bisect: compare") == found["probes"]
    assert len(builder.requests) == found["probes"] + 1 <= 14  # and the case alone
    info = info_of(bundle, component)
    assert {r.targets for r in builder.requests} == {info.targets}
    assert [len(r.profiles) for r in builder.requests[:-1]] == [1] * found["probes"]
    with np.load(case / "outputs.npz") as outputs:
        np.testing.assert_allclose(outputs["got"], 1.5 * outputs["expected"], rtol=1e-2)
    assert gpu.counters().live_bytes == 0
    kept = list((tmp_path / "cache").rglob("*.bin"))
    assert len(kept) == 1  # of the bundle's engine: those of engines that are gone are gone too


def test_an_engine_that_agrees(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    builder: Builder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, tail = engine_bundle("bf16"), "transformer_tail"
    simulate()
    only_components(monkeypatch, tail)
    command = ("verify", bundle, "--bisect", tail, "-o", tmp_path / "case")
    expect_user_error(ltx2rt(*command), "nothing to bisect", "agrees with ONNX Runtime")
    assert not builder.requests
    assert not (tmp_path / "case").exists()
    expect_user_error(ltx2rt(*command, "--layer", 3), "layer 3 is not one of transformer_tail's")
    (tmp_path / "case").mkdir()
    (tmp_path / "case/mine").touch()
    expect_user_error(ltx2rt(*command), "is no empty folder")


def test_an_engine_that_only_differs_in_the_bundle(
    simulate: Simulate,
    engine_bundle: EngineBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built again, it is right: there is no node to look for."""
    bundle, tail = engine_bundle("bf16"), "transformer_tail"
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    simulate()
    only_components(monkeypatch, tail)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, linear_of(bundle, tail).output[0])

        def repaired(
            component: str, request: EngineRequest, on_step: OnStep | None = None
        ) -> Built:
            patch.undo()
            return simulate_build(component, request, on_step)

        monkeypatch.setattr(engine_side, "run_build", repaired)
        outcome = ltx2rt("verify", bundle, "--bisect", tail, "-o", tmp_path / "case", "--quiet")
    expect_user_error(outcome, "built of the same graph now does not", "ltx2rt build")


def test_engines_that_hold_their_weights(
    simulate: Simulate, engine_bundle: EngineBundle, builder: Builder
) -> None:
    """Both sides give every tensor alike, whichever way the engine gets its weights."""
    folder, tail = engine_bundle("bf16"), "transformer_tail"
    simulate()
    bundle = open_bundle(folder)
    entry, weights = bundle.component(tail), Loader(bundle).weights(tail)
    rng, sizes = np.random.default_rng(0), {"B": 1}
    inputs = {}
    for tensor in entry.inputs:
        bucket = info_of(folder, tail).buckets[0].sizes
        shape = [d if isinstance(d, int) else sizes.get(d, bucket[d][1]) for d in tensor.shape]
        inputs[tensor.name] = (
            np.zeros(shape, np.int64)
            if tensor.dtype == "int64"
            else as_dtype(rng.normal(size=shape), tensor.dtype)
        )
    model = typed(onnx.load(folder / entry.graph, load_external_data=False))
    tensors = Lineage(model, inputs).tensors[::7]
    want = OrtSide(tail, model, {**inputs, **weights}, threads=1).values(tensors)
    info = info_of(folder, tail)
    held = dataclasses.replace(info, weights="constant", weight_inputs=())
    for either in (info, held):
        side = engine_side.EngineSide(model, either, inputs, weights, RuntimeConfig())
        for name, values in side.values(tensors).items():
            assert difference(values, want[name]).within(1e-2), name
    assert info.weight_inputs
    bound, inside = (Program.from_bytes(data) for data in builder.engines)
    assert {t.name for t in bound.inputs} - {t.name for t in inside.inputs} == set(weights)


def test_values_without_a_type_get_none() -> None:
    """ONNX Runtime refuses one of type 0; it finds out the types of what functions give."""
    value, made = (onnx.helper.make_tensor_value_info(n, 16, [1]) for n in ("x", "y"))
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    between = onnx.ValueInfoProto(name="between")
    graph = onnx.helper.make_graph([node], "g", [value], [made], value_info=[between])
    converted = engine_program.float32_graph(onnx.helper.make_model(graph)).graph
    assert not converted.value_info[0].type.HasField("tensor_type")
    assert converted.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
