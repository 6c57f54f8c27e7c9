"""Where two graphs part: the node by name, and a case that shows it in plain ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ltx2rt.cli.common import export_module
from ltx2rt.engine import Array
from ltx2rt.errors import UnsupportedError
from ltx2rt.weights.floats import as_dtype
from ltx2rt_export.bisect.find import Finding, find_first
from ltx2rt_export.bisect.lineage import Lineage
from ltx2rt_export.bisect.marks import typed
from ltx2rt_export.bisect.ort_side import OrtSide
from ltx2rt_export.bisect.search import Search, difference
from tests.parity.command_line import expect_user_error, ltx2rt

WIDTH, LENGTH = 8, 24
ROWS = 3


def chain(planted: str = "", factor: float = 1.0, dtype: str = "float32") -> onnx.ModelProto:
    """`LENGTH` linears with a residual each, every one with an innocent branch beside it; the gain
    of `planted` is multiplied by `factor`.
    """
    kind = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}[dtype]
    nodes, constants, x = [], [], "x"
    for i in range(LENGTH):
        gain = 0.5 * (factor if planted == f"scale/{i}" else 1.0)
        constants.append(helper.make_tensor(f"gain{i}", kind, (1,), [gain]))
        nodes += [
            helper.make_node("Sigmoid", ["x"], [f"beside{i}"], name=f"beside/{i}"),
            helper.make_node("MatMul", [x, "w"], [f"p{i}"], name=f"linear/{i}"),
            helper.make_node("Mul", [f"p{i}", f"gain{i}"], [f"s{i}"], name=f"scale/{i}"),
            helper.make_node("Add", [f"s{i}", f"beside{i}"], [f"a{i}"], name=f"add/{i}"),
            helper.make_node("Shape", [f"a{i}"], [f"n{i}"], name=f"shape/{i}"),
            helper.make_node("Reshape", [f"a{i}", f"n{i}"], [f"r{i}"], name=f"reshape/{i}"),
            helper.make_node("Tanh", [f"r{i}"], [f"t{i}"], name=f"tanh/{i}"),
        ]
        x = f"t{i}"
    nodes.append(helper.make_node("Identity", [x], ["y"], name="last"))
    nodes.append(helper.make_node("Neg", ["beside3"], ["other"], name="innocent"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [
            helper.make_tensor_value_info("x", kind, ("n", WIDTH)),
            helper.make_tensor_value_info("w", kind, (WIDTH, WIDTH)),
        ],
        [helper.make_tensor_value_info(n, kind, ("n", WIDTH)) for n in ("other", "y")],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def arrays(dtype: str = "float32") -> tuple[dict[str, Array], dict[str, Array]]:
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(WIDTH, WIDTH))
    return {"x": as_dtype(x, dtype)}, {"w": as_dtype(w, dtype)}


def compare(
    folder: Path, planted: str = "", factor: float = 1.2, dtype: str = "float32"
) -> tuple[Finding | None, list[Sequence[str]]]:
    inputs, weights = arrays(dtype)
    sides = [
        OrtSide("chain", typed(model), {**inputs, **weights}, threads=1)
        for model in (chain(dtype=dtype), chain(planted, factor, dtype))
    ]
    asked: list[Sequence[str]] = []
    return find_first(sides[0], sides[1], inputs, weights, 1e-4, folder, asked.append), asked


def run_plain(graph: Path, feeds: dict[str, Array]) -> Array:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, feeds)
    assert isinstance(result, np.ndarray)
    return result


@pytest.mark.parametrize("place", [0, 1, 13, LENGTH - 1])
def test_a_planted_constant_is_found_and_reproduced(tmp_path: Path, place: int) -> None:
    found, asked = compare(tmp_path / "case", f"scale/{place}")
    assert found is not None
    assert (found.node, found.op_type, found.tensor) == (f"scale/{place}", "Mul", f"s{place}")
    assert found.operators == ("Mul",)
    assert found.probes == len(asked) <= 12  # of 145 tensors
    assert found.rel_rms == pytest.approx(0.2, rel=1e-4) == found.alone
    with (
        np.load(tmp_path / "case/inputs.npz") as inputs,
        np.load(tmp_path / "case/outputs.npz") as outputs,
    ):
        feeds, values = dict(inputs), dict(outputs)
    assert list(feeds) == [f"p{place}"]
    got = run_plain(tmp_path / "case/engine.onnx", feeds)
    expected = run_plain(tmp_path / "case/reference.onnx", feeds)
    np.testing.assert_allclose(got, 1.2 * expected, rtol=1e-6)
    np.testing.assert_array_equal(got, values["got"])
    np.testing.assert_array_equal(expected, values["expected"])


def test_the_case_is_one_of_polygraphy(tmp_path: Path) -> None:
    """`polygraphy run` takes the inputs and what was expected, and sees the difference."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, CompareFunc, RunResults
    from polygraphy.json import load_json
    from polygraphy.logger import G_LOGGER

    compare(tmp_path / "case", "scale/9")
    inputs = load_json(str(tmp_path / "case/inputs.json"))
    for name, agrees in (("engine", False), ("reference", True)):
        session = SessionFromOnnx(str(tmp_path / f"case/{name}.onnx"))
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run([OnnxrtRunner(session)], data_loader=inputs)
            results.extend(RunResults.load(str(tmp_path / "case/expected.json")))
            compared = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple())
        assert bool(compared) is agrees, name


def test_halves_are_taken_and_given_as_float32(tmp_path: Path) -> None:
    found, _ = compare(tmp_path / "case", "scale/5", 2.0, "bfloat16")
    assert found is not None
    assert found.node == "scale/5"
    engine = onnx.load(tmp_path / "case/engine.onnx")
    onnx.checker.check_model(engine, full_check=True)
    values = [*engine.graph.input, *engine.graph.output]
    assert {v.type.tensor_type.elem_type for v in values} == {TensorProto.FLOAT}
    assert {t.data_type for t in engine.graph.initializer} == {TensorProto.BFLOAT16}
    with np.load(tmp_path / "case/inputs.npz") as inputs:
        feeds = dict(inputs)
    bits = feeds["p5_float32"].view(np.uint32)
    assert not (bits & 0xFFFF).any()  # what an engine in bfloat16 would have handed on
    with np.load(tmp_path / "case/outputs.npz") as outputs:
        np.testing.assert_array_equal(outputs["got"], 2 * outputs["expected"])
        expected = outputs["expected"]
    np.testing.assert_array_equal(run_plain(tmp_path / "case/reference.onnx", feeds), expected)


def test_weights_are_in_the_case(tmp_path: Path) -> None:
    """A weight that the other side reads otherwise: the linear that takes it, with its values."""
    inputs, weights = arrays()
    model = typed(chain())
    good = OrtSide("chain", model, {**inputs, **weights}, threads=1)
    bad = OrtSide("chain", model, {**inputs, "w": weights["w"] * 1.5}, threads=1)
    found = find_first(good, bad, inputs, weights, 1e-4, tmp_path / "case")
    assert found is not None
    assert (found.node, found.alone) == ("linear/0", 0.0)  # its graph alone has the right ones
    case = onnx.load(tmp_path / "case/engine.onnx")
    assert [t.name for t in case.graph.initializer] == ["w"]
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(case.graph.initializer[0]), weights["w"]
    )


def test_graphs_that_agree(tmp_path: Path) -> None:
    found, asked = compare(tmp_path / "case")
    assert found is None
    assert asked == [["other", "y"]]
    assert not (tmp_path / "case").exists()


def test_what_is_between_floats_belongs_to_the_float_behind() -> None:
    lineage = Lineage(typed(chain()), {"x"})
    assert "n0" not in lineage.tensors
    assert lineage.nearest("r0") == ["a0"]
    assert lineage.nearest("p0") == []  # inputs and weights are no tensors of the graph
    assert lineage.named(lineage.before("a0")) == ["beside0", "p0", "s0"]


def test_a_difference_that_later_values_hide_is_followed_upwards() -> None:
    """`t0` agrees by chance although `a0` differs: the inputs of what is found are asked for."""
    lineage = Lineage(typed(chain()), {"x"})
    differ = {"y", *(f"{kind}{i}" for kind in "psart" for i in range(1, LENGTH)), "a0", "r0"}
    differ.discard("t1")

    def values(names: Sequence[str]) -> dict[str, Array]:
        return {n: np.ones(1) for n in names}

    def wrong(names: Sequence[str]) -> dict[str, Array]:
        return {n: np.full(1, 2.0 if n in differ else 1.0) for n in names}

    first = Search(lineage, values, wrong, 1e-3).first(["other", "y"])
    assert first is not None
    assert first in differ
    assert differ.isdisjoint(lineage.nearest(first))


@pytest.mark.parametrize(
    ("got", "want", "agrees"),
    [
        ([1.0, np.inf], [1.0, np.inf], True),
        ([np.nan, 2.0], [np.nan, 2.0], True),
        ([np.nan, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [np.nan, 2.0], False),
        ([-np.inf, 2.0], [np.inf, 2.0], False),
        ([1.0, 3.4e38], [1.0, np.inf], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_numbers_that_are_none(got: Any, want: Any, agrees: bool) -> None:
    assert difference(np.array(got), np.array(want)).within(1e-3) is agrees


def test_a_bundle_without_engines(demo_bundle: Path, tmp_path: Path) -> None:
    outcome = ltx2rt("verify", demo_bundle, "--bisect", "video_decoder", "-o", tmp_path / "case")
    expect_user_error(outcome, "no engine of video_decoder", "leave --bisect out")
    outcome = ltx2rt("verify", demo_bundle, "--bisect", "nothing", "-o", tmp_path / "case")
    expect_user_error(outcome, "holds no nothing")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bisect", "vocoder"), "--bisect needs -o DIR"),
        (("--layer", "1"), "--layer is for --bisect COMPONENT"),
        (("-o", "case"), "--output is for --bisect COMPONENT"),
        (("--bisect", "vocoder", "-o", "case", "--weights"), "give one"),
        (("--bisect", "vocoder", "-o", "case", "--bound", "-1"), "--bound -1 is not above 0"),
    ],
)
def test_flags_that_do_not_fit(demo_bundle: Path, flags: tuple[str, ...], said: str) -> None:
    expect_user_error(ltx2rt("verify", demo_bundle, *flags), said)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("polygraphy", "ltx2rt_export.bisect"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(UnsupportedError, match=r"package polygraphy.*the debug extra.*\[debug\]"):
        export_module("bisect.component")
