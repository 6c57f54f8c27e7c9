"""The graph pass: every site is replaced, and ONNX Runtime gives the golden numbers through the
operators' bodies.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from benchmarks.real_size import LTX23, transformer_components
from ltx2rt.backends.onnxruntime import OrtOptions
from ltx2rt.components.transformer import ModalityInput, Perturbations, Transformer
from ltx2rt.engine import Engine
from ltx2rt.errors import EngineError, InternalError, OptionError, UnsupportedError
from ltx2rt.names import TRANSFORMER_STACK
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.component import Component
from ltx2rt_export.custom_ops import (
    apply_custom_ops,
    operators_for,
    used_operators,
    write_kernels,
)
from ltx2rt_export.custom_ops.kernels import engine_facts
from ltx2rt_export.custom_ops.linear_attention import use_linear_attention
from ltx2rt_export.custom_ops.token_chunks import chunk_feed_forward
from ltx2rt_export.engines import stage
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.modules.transformer import (
    transformer_block,
    transformer_head,
    transformer_tail,
)
from ltx2rt_export.quantize.floats import substitute_float
from ltx2rt_export.reference import TorchEngine, component_stack, load_weights
from ltx2rt_kernels import build
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.gated_residual import spec as gated
from ltx2rt_kernels.spec import KernelSpec
from tests.kernels.graphs import rtx_kernels
from tests.parity import tiny_transformer as tiny
from tests.parity.exports import exported
from tests.parity.ort_engine import ort_engine
from tests.parity.test_transformer import GOLDEN, case_inputs
from tests.tolerances import FP8_BLOCK_REL_RMS, ORT_REL_RMS, TOLERANCES

#: generation, RoPE layout -> custom nodes of a block
SITES = {
    ("19b", "interleaved"): {
        "AdalnModulate": 8,
        "GatedResidual": 4,
        "QkNormRopeInterleaved": 4,
        "MaskedFlashAttention": 4,
        "FlashAttention": 2,
    },
    ("2.3", "split"): {
        "AdalnModulate": 10,
        "GatedResidual": 6,
        "QkNormRope": 4,
        "MaskedFlashAttention": 4,
        "FlashAttention": 2,
    },
    ("2.5", "split"): {
        "AdalnModulate": 10,
        "GatedResidual": 6,
        "QkNormRope": 4,
        "MaskedFlashAttention": 4,
        "FlashAttention": 2,
    },
}
EIGHT_BIT_NODES = ("QuantizeQueries", "QuantizeKeys", "QuantizeValues", "MaskedFp8Attention")
#: norms that no operator takes: q and k of text attention, which have no RoPE; before 2.3 its query
#: too, which is not modulated
TEXT_NORMS = {"19b": 6, "2.3": 4, "2.5": 4}
Streams = tuple[ModalityInput | None, ModalityInput | None, Perturbations]
DIT = TOLERANCES["dit"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tiny:
    """A tiny transformer's file and its block's graph."""

    generation: str
    rope: str
    file: SafetensorsFile
    block: ExportedGraph

    @property
    def metadata(self) -> dict[str, object]:
        return {**tiny.METADATA, "rope_type": self.rope}

    def model(self, block: ExportedGraph) -> Transformer:
        """The runtime class with this block on ONNX Runtime, its ends in PyTorch."""
        parts = [make(self.metadata, self.file) for make in (transformer_head, transformer_tail)]

        def engine(part: Component) -> Engine:
            is_block = part is block.component
            return ort_engine(block, OrtOptions(threads=1)) if is_block else TorchEngine(part)

        stack = component_stack(
            TRANSFORMER_STACK,
            [*parts, block.component],
            engine,
            lambda part: [load_weights(entry, block.transposed) for entry in part.layers],
        )
        return Transformer(stack, block.component.options)


@pytest.fixture(scope="module", params=SITES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    generation, rope = request.param
    path = tmp_path_factory.mktemp("custom_ops") / "tiny.safetensors"
    file = tiny.write_checkpoint(path, tiny.tiny_config(generation, rope_type=rope))
    component = transformer_block({**tiny.METADATA, "rope_type": rope}, file)
    return Tiny(generation, rope, file, exported(component))


def custom_nodes(graph: ExportedGraph) -> dict[str, int]:
    return dict(Counter(n.op_type for n in graph.model.graph.node if n.domain == "ltx2rt"))


def on(graph: ExportedGraph, precision: str = "fp32") -> ExportedGraph:
    return apply_custom_ops(
        graph, backend="onnxruntime", target=None, precision=precision, mode="on"
    )


def rel_rms(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def run(model: Transformer, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    video, audio = model(*streams)
    assert video is not None
    assert audio is not None
    return video, audio


def test_every_site_is_replaced_and_the_numbers_stay(case: Tiny) -> None:
    before = case.block.model.SerializeToString()
    custom = on(case.block)
    onnx.checker.check_model(custom.model)
    assert custom_nodes(custom) == SITES[case.generation, case.rope]
    left = Counter(n.op_type for n in custom.model.graph.node)
    assert left["Softmax"] == 0
    assert left["Pow"] == TEXT_NORMS[case.generation]
    fused = use_linear_attention(case.block)
    kinds = Counter(n.op_type for n in fused.model.graph.node)
    assert (kinds["Softmax"], kinds["MultiHeadAttention"], kinds["If"]) == (0, 2, 4)
    chunked = chunk_feed_forward(fused)
    kinds = Counter(n.op_type for n in chunked.model.graph.node)
    assert (kinds["Gelu"], kinds["Loop"]) == (0, 2)
    streams = case_inputs(case.generation, "masked_stg")
    graphs = (case.block, custom, fused, chunked)
    want, *results = (run(case.model(graph), streams) for graph in graphs)
    assert all(np.array_equal(*pair) for pair in zip(*results[1:], strict=True))
    for result in results:
        assert all(rel_rms(*pair) <= ORT_REL_RMS for pair in zip(result, want, strict=True))
    assert case.block.model.SerializeToString() == before


def test_norms_inside_casts_are_found(case: Tiny) -> None:
    """16-bit graphs cast to float32 before a norm and back after it."""
    model = onnx.ModelProto()
    model.CopyFrom(case.block.model)
    cast: dict[str, str] = {}
    units = {n.output[0] for n in model.graph.node if n.op_type == "Reciprocal"}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        is_unit = node.op_type == "Mul" and node.input[1] in units
        if node.op_type == "Pow" or is_unit:
            wide = cast.setdefault(node.input[0], f"{node.input[0]}.wide")
            if node.op_type == "Pow":
                nodes.append(onnx.helper.make_node("Cast", [node.input[0]], [wide], to=1))
            node.input[0] = wide
        nodes.append(node)
        if is_unit:
            normed = node.output[0]
            node.output[0] = f"{normed}.wide"
            nodes.append(onnx.helper.make_node("Cast", [node.output[0]], [normed], to=1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    custom = on(dataclasses.replace(case.block, model=model))
    assert custom_nodes(custom) == SITES[case.generation, case.rope]
    assert sum(n.op_type == "Pow" for n in custom.model.graph.node) == TEXT_NORMS[case.generation]


def test_specification_vectors(case: Tiny) -> None:
    if case.rope == "interleaved":
        pytest.skip("the vectors are of the split layout")
    model = case.model(on(case.block))
    for plan in ("plain", "masked_stg"):
        name = f"{case.generation}/{plan}"
        velocities = run(model, case_inputs(case.generation, plan))
        for stream, velocity in zip(("video", "audio"), velocities, strict=True):
            want = GOLDEN["transformer"][name][stream]
            flat = velocity.reshape(2, -1)
            assert np.linalg.norm(velocity) == pytest.approx(want["l2"], rel=DIT.rtol)
            for got, key in ((flat[0, :8], "first8_sample0"), (flat[1, -8:], "last8_sample1")):
                np.testing.assert_allclose(got, want[key], rtol=DIT.rtol, atol=DIT.atol)


def test_eight_bits_for_the_long_attention_alone(case: Tiny) -> None:
    custom = on(case.block, "fp8")
    onnx.checker.check_model(custom.model)
    expected = dict(SITES[case.generation, case.rope])
    expected["MaskedFlashAttention"] -= 1
    expected |= dict.fromkeys(EIGHT_BIT_NODES, 1)
    assert custom_nodes(custom) == expected
    streams = case_inputs(case.generation, "plain")
    exact, got = (run(case.model(graph), streams)[0] for graph in (case.block, custom))
    assert 1e-5 < rel_rms(got, exact) <= FP8_BLOCK_REL_RMS


def test_off_and_auto_change_nothing(case: Tiny) -> None:
    for mode in ("off", "auto"):
        for backend in ("onnxruntime", "tensorrt-rtx", "tensorrt"):
            arguments = {"backend": backend, "target": "sm90", "precision": "bf16", "mode": mode}
            assert apply_custom_ops(case.block, **arguments) is case.block


def test_components_without_patterns_stay_as_they_are(case: Tiny) -> None:
    """The vocoder is float32 in every precision, which no kernel is for: no reason to refuse it."""
    component = dataclasses.replace(case.block.component, name="vocoder")
    graph = dataclasses.replace(case.block, component=component)
    arguments = {"backend": "tensorrt", "target": "sm90", "precision": "fp32", "mode": "on"}
    assert apply_custom_ops(graph, **arguments) is graph


def open_stage(monkeypatch: pytest.MonkeyPatch, precision: str, custom_ops: str) -> object:
    """The engine stage of a TensorRT build, as if TensorRT were here."""
    monkeypatch.setattr(stage, "open_builder", lambda *_: SimpleNamespace(targets=("sm90",)))
    monkeypatch.setattr(stage, "profile_request", lambda *_: None)
    config = SimpleNamespace(
        backend="tensorrt", precision=precision, custom_ops=custom_ops, cache_dir=None
    )
    return stage.engine_stage(config, None, {})  # type: ignore[arg-type]


def test_what_cannot_be_compiled_is_known_before_the_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_stage(monkeypatch, "fp16", "on")
    with pytest.raises(UnsupportedError, match="tensorrt, sm90, fp32; there are kernels for sm80"):
        open_stage(monkeypatch, "fp32", "on")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"need Triton .*pip install .*\[kernels\]'"):
        open_stage(monkeypatch, "bf16", "on")
    open_stage(monkeypatch, "bf16", "auto")


def test_a_kernel_that_triton_refuses_is_an_engine_error(
    real_block: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    custom = apply_custom_ops(
        real_block, backend="tensorrt", target="sm90", precision="bf16", mode="on"
    )

    def refuse(*_: object) -> list[str]:
        raise KernelError("Triton 3.9 refuses it")

    monkeypatch.setattr(build, "write_artifacts", refuse)
    with pytest.raises(EngineError, match=r"kernels of transformer_block: Triton 3\.9 refuses it"):
        write_kernels(custom, "sm90", tmp_path)


def test_sizes_without_a_kernel_are_named(case: Tiny) -> None:
    block = substitute_float(case.block, "bfloat16")
    with pytest.raises(UnsupportedError) as caught:
        apply_custom_ops(block, backend="tensorrt", target="sm90", precision="bf16", mode="on")
    for words in ("no bf16 kernel on 90a", "MaskedFlashAttention (scale=0.25)", "bf16-128"):
        assert words in str(caught.value)


def test_an_unknown_attention_is_an_error(case: Tiny) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(case.block.model)
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    scores = next(n for n in model.graph.node if n.output[0] == softmax.input[0])
    scores.op_type = "Sub"
    with pytest.raises(InternalError, match="unknown attentions"):
        on(dataclasses.replace(case.block, model=model))


def test_table() -> None:
    for precision in ("bf16", "fp16"):
        assert operators_for("tensorrt", "sm90", precision, "on")[-1] == "flash_attention"
    assert "fp8_attention" not in operators_for("tensorrt", "sm90", "bf16", "on")
    assert "fp8_attention" in operators_for("tensorrt", "sm90", "fp8", "on")
    assert "fp8_attention" not in operators_for("tensorrt", "sm80", "int8-wo", "on")
    assert "fp8_attention" not in operators_for("tensorrt-rtx", "sm89", "fp8", "on")
    with pytest.raises(UnsupportedError, match="sm75"):
        operators_for("tensorrt", "sm75", "bf16", "on")
    with pytest.raises(UnsupportedError, match="fp32"):
        operators_for("tensorrt", "sm90", "fp32", "on")
    with pytest.raises(OptionError, match="custom_ops='maybe'"):
        operators_for("tensorrt", "sm90", "bf16", "maybe")
    with pytest.raises(OptionError, match="backend='cuda'"):
        operators_for("cuda", "sm90", "bf16", "on")


@pytest.fixture(scope="module")
def real_block() -> ExportedGraph:
    """A block of LTX-2.3 at its real size, in bfloat16."""
    block = transformer_components(dataclasses.replace(LTX23, num_layers=1))[1]
    return exported(block, "bfloat16")


def test_real_sizes_have_kernels(real_block: ExportedGraph) -> None:
    blocks = {p: real_block for p in ("bf16", "fp8")}
    blocks["fp16"] = substitute_float(real_block, "float16")
    for target in ("sm80", "sm89", "sm90", "sm100", "sm120"):
        for precision, block in blocks.items():
            if (target, precision) == ("sm80", "fp8"):
                continue
            custom = apply_custom_ops(
                block, backend="tensorrt", target=target, precision=precision, mode="on"
            )
            expected = dict(SITES["2.3", "split"])
            if precision == "fp8":
                expected["MaskedFlashAttention"] -= 1
                expected |= dict.fromkeys(EIGHT_BIT_NODES, 1)
            assert custom_nodes(custom) == expected


def test_nodes_have_one_float_type(real_block: ExportedGraph) -> None:
    """A plugin takes its tensors in one dtype: no table or modulation may stay in float32."""
    model = onnx.shape_inference.infer_shapes(on(real_block, "bf16").model)
    values = (*model.graph.input, *model.graph.value_info)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.domain == "ltx2rt"]
    assert {types[i] for n in nodes for i in n.input} == {TensorProto.BFLOAT16, TensorProto.INT64}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_kernels_of_a_graph(
    real_block: ExportedGraph, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its dtype alone."""
    block = real_block if precision == "bf16" else substitute_float(real_block, "float16")
    custom = apply_custom_ops(
        block, backend="tensorrt", target="sm90", precision=precision, mode="on"
    )
    assert used_operators(real_block) == ()
    assert used_operators(custom) == (
        *("qk_norm_rope", "adaln_modulate", "gated_residual"),
        *("flash_attention", "masked_flash_attention"),
    )
    compiled: list[str] = []

    def write(
        directory: Path, specs: Sequence[KernelSpec], architectures: Sequence[str]
    ) -> list[str]:
        compiled.extend(spec.artifact_name(a) for spec in specs for a in architectures)
        return compiled

    monkeypatch.setattr(build, "write_artifacts", write)
    assert write_kernels(custom, "sm90", tmp_path) == "90a"
    heads = [f"{precision}-{d}.90a" for d in (128, 64)]
    widths = [f"{precision}-{w}.90a" for w in (4096, 2048)]
    assert sorted(compiled) == sorted(
        [f"{o}.{v}" for o in ("flash_attention", "masked_flash_attention") for v in heads]
        + [f"{o}.{v}" for o in ("adaln_modulate", "gated_residual") for v in widths]
        + [f"qk_norm_rope.{precision}-32x{d}.90a" for d in (128, 64)]
    )


def test_machine_code_does_not_decide_whether_an_engine_is_reused(tmp_path: Path) -> None:
    spec = gated.kernel(gated.GATHERED, "bf16", 2048)
    list(build.write_artifacts(tmp_path, [spec], ["90a"]))
    facts = engine_facts(tmp_path)
    about = facts["gated_residual.bf16-2048.90a"]
    assert (about["grid"], about["threads"]) == (["B * T", "1", "1"], 128)
    path = tmp_path / "gated_residual.bf16-2048.90a.json"
    changed = json.loads(path.read_text())
    assert about["files"] == {"ptx": changed["files"]["ptx"]}
    changed["files"]["cubin"]["sha256"] = "0"
    path.write_text(json.dumps(changed))
    assert engine_facts(tmp_path) == facts
    path.write_text(json.dumps({**changed, "threads": 256}))
    assert engine_facts(tmp_path) != facts


@pytest.mark.parametrize("mode", ["off", "on"])
def test_rtx_fuses_every_attention(real_block: ExportedGraph, mode: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    custom = apply_custom_ops(
        real_block, backend="tensorrt-rtx", target="sm89", precision="bf16", mode=mode
    )
    names = rtx_kernels(custom.model, tmp_path)
    assert sum(n.startswith("_gemm_mha_v2") for n in names) == 6
    assert not [n for n in names if "MaxrSubExpSum" in n]
