"""Every precision: the graph against its PyTorch emulation, and what it loses against float32."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.numpy import save_file

from ltx2rt.backends.onnxruntime import OrtEngine, OrtOptions
from ltx2rt.engine import Array, EngineSpec
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.weights.codecs.engine_formats import FP8
from ltx2rt.weights.precision import PRECISIONS, precision_of
from ltx2rt.weights.safetensors import SafetensorsFile, convert
from ltx2rt_export.component import Component, load_weights
from ltx2rt_export.engines.weights import holding_layers
from ltx2rt_export.example_inputs import example_inputs
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.modules.transformer import (
    transformer_block,
    transformer_head,
    transformer_tail,
)
from ltx2rt_export.quantize import apply_precision, check_precision, component_precision
from ltx2rt_export.quantize.bind import bind_inputs, bind_weights
from ltx2rt_export.quantize.component_graph import quantized_modules, rewrite_graph
from ltx2rt_export.quantize.emulate import EmulatedEngine, activation_maxima
from ltx2rt_export.quantize.floats import substitute_float
from ltx2rt_export.quantize.linears import weight_inputs
from ltx2rt_export.quantize.range_check import check_float16, check_range
from ltx2rt_export.quantize.rewrites import REWRITES
from tests.parity import tiny_transformer as tiny
from tests.parity.exports import exported
from tests.parity.onnx_reference import run_reference
from tests.tolerances import BF16_REL_RMS, QUANT_GRAPH_REL_RMS, QUANT_LOSS, QUANT_ROUNDING

QUANTIZED = tuple(REWRITES)
Graphs = Mapping[str, ExportedGraph]
Feeds = Callable[[ExportedGraph, str], dict[str, Array]]


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: pytest.TempPathFactory) -> SafetensorsFile:
    path = tmp_path_factory.mktemp("quantize") / "tiny.safetensors"
    return tiny.write_checkpoint(path, tiny.tiny_config("2.3"))


@pytest.fixture(scope="module")
def block(plain_file: SafetensorsFile) -> Component:
    return transformer_block(tiny.METADATA, plain_file)


@pytest.fixture(scope="module")
def graphs(block: Component) -> Graphs:
    """The block in every float dtype."""
    wide, half = (exported(block, d) for d in ("float32", "bfloat16"))
    return {"float32": wide, "bfloat16": half, "float16": substitute_float(half, "float16")}


@pytest.fixture(scope="module")
def weights(block: Component) -> dict[str, Array]:
    return load_weights(block.layers[0], frozenset())


@pytest.fixture(scope="module")
def inputs(block: Component) -> dict[str, Array]:
    return example_inputs(block, np.random.default_rng(0))


@pytest.fixture(scope="module")
def plain(graphs: Graphs, weights: dict[str, Array], inputs: dict[str, Array]) -> dict[str, Array]:
    """What the float32 graph gives."""
    graph = graphs["float32"]
    return run_reference(graph, {**inputs, **bind_weights(graph, "fp32", weights)})


@pytest.fixture(scope="module")
def maxima(
    block: Component, weights: dict[str, Array], inputs: dict[str, Array]
) -> dict[str, float]:
    return activation_maxima(block, [{**inputs, **weights}])


@pytest.fixture(scope="module")
def feeds(weights: dict[str, Array], inputs: dict[str, Array], maxima: dict[str, float]) -> Feeds:
    """Inputs and weights of a graph in a precision, as an engine takes them."""

    def make(graph: ExportedGraph, precision: str) -> dict[str, Array]:
        largest = (precision in REWRITES and REWRITES[precision].static_range) or 1
        static = {n for n in weight_inputs(graph) if n.endswith(".input_scale")}
        scales = {m: v / largest for m, v in maxima.items() if f"{m}.input_scale" in static}
        bound = bind_weights(graph, precision, weights, scales)
        return {**bind_inputs(graph, inputs), **bound}

    return make


def emulated(
    graph: ExportedGraph, precision: str, tensors: Mapping[str, Array]
) -> dict[str, Array]:
    out = EmulatedEngine(graph, precision)(tensors)
    return {
        s.name: convert(out[s.name], s.dtype, "float32", s.name) for s in graph.component.outputs
    }


def rel_rms(got: Mapping[str, Array], want: Mapping[str, Array]) -> float:
    return max(
        float(np.sqrt(np.mean((got[n] - w) ** 2) / np.mean(np.square(w)))) for n, w in want.items()
    )


@pytest.mark.parametrize("precision", QUANTIZED)
def test_graph_equals_its_emulation_in_float32(
    precision: str,
    graphs: Graphs,
    feeds: Feeds,
    plain: dict[str, Array],
) -> None:
    graph = rewrite_graph(graphs["float32"], precision)
    tensors = feeds(graph, precision)
    want = emulated(graph, precision, tensors)
    assert rel_rms(run_reference(graph, tensors), want) < QUANT_GRAPH_REL_RMS
    low, high = QUANT_LOSS[precision]
    assert low < rel_rms(want, plain) < high


@pytest.mark.parametrize("precision", ["bf16", *QUANTIZED])
def test_bfloat16_graph_loses_what_its_emulation_loses(
    precision: str,
    graphs: Graphs,
    feeds: Feeds,
    plain: dict[str, Array],
) -> None:
    graph = rewrite_graph(graphs["bfloat16"], precision)
    tensors = feeds(graph, precision)
    got, want = run_reference(graph, tensors), emulated(graph, precision, tensors)
    assert rel_rms(got, plain) < QUANT_ROUNDING * rel_rms(want, plain)
    if precision == "bf16":
        assert rel_rms(want, plain) < BF16_REL_RMS


@pytest.mark.parametrize("precision", [p for p in QUANTIZED if PRECISIONS[p].on_cpu])
def test_onnxruntime_equals_the_emulation(precision: str, graphs: Graphs, feeds: Feeds) -> None:
    graph = rewrite_graph(graphs["float32"], precision)
    tensors = feeds(graph, precision)
    spec = EngineSpec("transformer_block", graph.component.inputs, graph.component.outputs)
    row, inside = PRECISIONS[precision], {}
    options = OrtOptions(threads=1, full_optimization=row.format != FP8)
    model = graph.model
    if row.inside:
        inside, model = {n: tensors[n] for n in graph.weights}, holding_layers(graph).model
    data = model.SerializeToString()
    with OrtEngine(data, spec, inside, options, copied=row.inside) as engine:
        got = engine({n: a for n, a in tensors.items() if n not in inside})
    assert rel_rms(got, emulated(graph, precision, tensors)) < QUANT_GRAPH_REL_RMS


def test_float16_graph_on_onnxruntime(
    graphs: Graphs, feeds: Feeds, plain: dict[str, Array]
) -> None:
    graph = graphs["float16"]
    tensors = feeds(graph, "fp16")
    session = ort.InferenceSession(graph.model.SerializeToString())
    names = [s.name for s in graph.component.outputs]
    got = dict(zip(names, session.run(names, tensors), strict=True))
    got = {n: a.astype(np.float32) for n, a in got.items()}
    assert rel_rms(got, plain) < BF16_REL_RMS / 4  # float16 has three more bits


def test_islands_stay_in_float32(graphs: Graphs) -> None:
    """Means of squares, their roots and reciprocals: never in 16 bits."""
    for dtype in ("bfloat16", "float16"):
        model = onnx.shape_inference.infer_shapes(graphs[dtype].model)
        types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
        for kind in ("ReduceMean", "Sqrt", "Reciprocal"):
            nodes = [n for n in model.graph.node if n.op_type == kind]
            assert len(nodes) == 20
            assert {types[n.output[0]] for n in nodes} == {onnx.TensorProto.FLOAT}


def test_the_float32_twin_of_a_16_bit_graph_is_the_float32_graph(
    graphs: Graphs, weights: dict[str, Array], inputs: dict[str, Array], plain: dict[str, Array]
) -> None:
    twin = substitute_float(graphs["bfloat16"], "float32")
    assert {s.dtype for s in twin.component.inputs} == {"float32", "int64"}
    got = run_reference(twin, {**inputs, **bind_weights(twin, "fp32", weights)})
    assert rel_rms(got, plain) < 5e-4  # 1 / sqrt(head_dim) is a bfloat16 constant


def test_range_check_names_the_node(
    graphs: Graphs, weights: dict[str, Array], inputs: dict[str, Array]
) -> None:
    graph = graphs["float16"]
    bound = {
        n: np.ascontiguousarray(a.T) if n in graph.transposed else a for n, a in weights.items()
    }
    calls = [{**inputs, **bound}]
    top = check_range(graph, calls)
    assert 1 < top.value < 1e4
    assert top.layer == 0
    loud = dict(calls[0])
    loud["ff.net.0.proj.weight"] = bound["ff.net.0.proj.weight"] * np.float32(1e5)
    with pytest.raises(
        UnsupportedError, match=r"overflows in transformer_block in layer 1: MatMul"
    ) as e:
        check_range(graph, [calls[0], loud])
    assert "use bf16" in str(e.value)


def test_range_check_of_a_whole_transformer(graphs: Graphs, plain_file: SafetensorsFile) -> None:
    """Head, blocks on what it gives, tail; the first overflow is named."""
    ends = [make(tiny.METADATA, plain_file) for make in (transformer_head, transformer_tail)]
    narrow = [graphs["float16"], *(exported(c, "float16") for c in ends)]
    peaks = check_float16(narrow)
    assert set(peaks) == {"transformer_head", "transformer_block", "transformer_tail"}
    assert all(0.1 < p.value < 1e4 for p in peaks.values())
    # the file's values 3e4 times as large: the head overflows
    path = plain_file.path.with_name("loud.safetensors")
    loud = {n: a * np.float32(3e4) for n, a in tiny.weights(tiny.tiny_config("2.3")).items()}
    save_file(loud, path)
    head = transformer_head(tiny.METADATA, SafetensorsFile(path))
    component = dataclasses.replace(narrow[1].component, weights=head.weights)
    with pytest.raises(UnsupportedError, match=r"overflows in transformer_head: \w+"):
        check_float16([dataclasses.replace(narrow[1], component=component)])


def test_linears_that_official_files_quantise(graphs: Graphs) -> None:
    modules = quantized_modules(graphs["float32"], "fp8")
    assert len(modules) == 28
    assert not [m for m in modules if "gate" in m or "norm" in m]
    video = quantized_modules(graphs["float32"], "nvfp4")
    assert len(video) == 12
    assert "audio_attn1.to_q" not in video
    assert "video_to_audio_attn.to_k" in video


def test_other_components_stay_in_16_bits() -> None:
    assert component_precision("transformer_block", "fp8") == "fp8"
    assert component_precision("transformer_head", "nvfp4") == "bf16"
    assert component_precision("vocoder", "fp8") == component_precision("vocoder", "bf16") == "fp32"


def test_apply_precision_on_a_graph_in_the_right_dtype_only_rewrites(graphs: Graphs) -> None:
    graph = apply_precision(graphs["bfloat16"], "fp8", target="sm89")
    assert graph.dtype == "bfloat16"
    inputs = weight_inputs(graph)
    assert inputs["attn1.to_q.weight"] == ("float8_e4m3fn", (64, 64))
    assert inputs["attn1.to_q.weight_scale"] == ("float32", (64,))
    assert inputs["attn1.to_gate_logits.weight"] == ("bfloat16", (64, 4))
    assert set(graph.weights) == set(inputs)


def test_targets() -> None:
    for precision, target in (
        ("fp8", "sm89"),
        ("nvfp4", "sm120"),
        ("bf16", "SM80"),
        ("fp16", "sm_75"),
    ):
        check_precision(precision, target)
    with pytest.raises(UnsupportedError, match=r"fp8.*needs sm89.*target is sm86.*bf16"):
        check_precision("fp8", "sm86")
    with pytest.raises(UnsupportedError, match=r"nvfp4.*needs sm100"):
        check_precision("nvfp4", "sm89")
    with pytest.raises(OptionError, match="write it as sm89"):
        check_precision("fp8", "ada")
    with pytest.raises(OptionError, match="precision='fp7' is unknown"):
        precision_of("fp7")


def test_every_head_input_that_carries_time_stays_float32(plain_file: SafetensorsFile) -> None:
    graph = exported(transformer_head(tiny.METADATA, plain_file), "bfloat16")
    dtypes = {s.name: s.dtype for s in graph.component.inputs}
    assert dtypes["video_timestep_values"] == dtypes["audio_sigma"] == "float32"
    assert dtypes["video_latent"] == "bfloat16"
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(graph.model).graph.value_info
    }
    waves = [n for n in graph.model.graph.node if n.op_type in ("Cos", "Sin")]
    assert len(waves) == 8
    assert {types[n.output[0]] for n in waves} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("precision", "target", "gemms"),
    [
        ("fp8", "SM89", {"fp8_e4m3": 28}),
        ("fp8", "SM120", {"fp8_e4m3": 28}),
        ("fp8-static", "SM89", {"fp8_e4m3": 28}),
        ("int8-wo", "SM89", {}),
        ("int4-wo", "SM89", {}),
        ("nvfp4", "SM120", {"fp4_e2m1": 12}),
        ("nvfp4-static", "SM120", {"fp4_e2m1": 28}),
    ],
)
def test_tensorrt_rtx_builds_it(
    precision: str, target: str, gemms: dict[str, int], graphs: Graphs, tmp_path: Path
) -> None:
    """No GPU is needed; the engine's text tells what the GEMMs read."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    graph = rewrite_graph(graphs["bfloat16"], precision)
    path = tmp_path / "block.onnx"
    onnx.save(graph.model, str(path))
    command = [sys.executable, "-m", "tests.parity.build_rtx", str(path), target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout.splitlines()[-1])
    assert found.items() >= gemms.items()
