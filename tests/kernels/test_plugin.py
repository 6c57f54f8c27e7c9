"""The plugins in TensorRT's own plugin layer, without TensorRT's libraries (`stub_tensorrt`).

Checked: registration, signatures, shape and type functions, and what `aot_impl` hands to TensorRT.
Not checked, for want of TensorRT: that it builds an engine of it and launches the kernel.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltx2rt_kernels import build, catalog, ptx
from ltx2rt_kernels.adaln_modulate import spec as adaln
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.flash_attention import spec as flash
from ltx2rt_kernels.qk_norm_rope import spec as rope
from tests.kernels.stub_tensorrt import COMPILER, StubTensorRT, Terms

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler for empty libraries")

TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "i64": "INT64", "fp8e4nv": "FP8"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kernels")
    specs = [
        rope.kernel(rope.SPLIT, "bf16", 32, 128),
        adaln.kernel(adaln.GATHERED_QUANT, "bf16", 4096),
        flash.kernel(flash.MASKED, "fp16", 64),
    ]
    list(build.write_artifacts(directory, specs, ["90a"]))
    return directory


@pytest.fixture(scope="module")
def tensorrt(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubTensorRT]:
    worker = StubTensorRT(tmp_path_factory.mktemp("stub"))
    assert worker.call(_register, artifacts) == [
        f"ltx2rt::{o.node}" for o in catalog.operators().values()
    ]
    yield worker
    worker.close()


def _register(artifacts: Path) -> list[str]:
    from ltx2rt_kernels.plugin import register_plugins

    return list(register_plugins(artifacts, "90a", lazy=True))


def _definition(node: str) -> Any:
    from tensorrt.plugin._lib import QDP_REGISTRY

    return QDP_REGISTRY[f"ltx2rt::{node}"]


def _descriptors(inputs: list[tuple[str, tuple[int | str, ...]]]) -> tuple[Any, ...]:
    import tensorrt as trt
    from tensorrt import plugin

    terms = Terms()
    return tuple(
        plugin.TensorDesc(terms.shape(*shape), getattr(trt.DataType, TYPES[dtype]))
        for dtype, shape in inputs
    )


def describe(
    node: str, inputs: list[tuple[str, tuple[int | str, ...]]], attributes: dict[str, Any]
) -> list[tuple[str, list[str]]]:
    """Worker: dtype and shape of the outputs."""
    outputs = _definition(node).register_func(*_descriptors(inputs), **attributes)
    return [(o.dtype.name, [e._expr.text for e in o.shape_expr]) for o in outputs]


def describe_before_shapes(node: str, dtypes: list[str], ranks: list[int]) -> list[str]:
    """Worker: dtypes of the outputs when TensorRT knows ranks alone."""
    import tensorrt as trt
    from tensorrt import plugin
    from tensorrt.plugin._tensor import SymIntExpr

    SymIntExpr._exprBuilder = None
    inputs = [
        plugin.TensorDesc(plugin.ShapeExprs(rank, True), getattr(trt.DataType, TYPES[dtype]))
        for dtype, rank in zip(dtypes, ranks, strict=True)
    ]
    (attributes,) = (o.attributes for o in catalog.operators().values() if o.node == node)
    return [o.dtype.name for o in _definition(node).register_func(*inputs, **attributes)]


def implement(
    node: str, inputs: list[tuple[str, tuple[int | str, ...]]], values: list[int | float]
) -> dict[str, Any]:
    """Worker: what `aot_impl` returns."""
    from tensorrt import plugin

    definition = _definition(node)
    name, text, launch, extra = definition.aot_impl_func(*_descriptors(inputs), *values, (), 0)
    assert isinstance(launch, plugin.KernelLaunchParams)
    assert isinstance(extra, plugin.SymIntExprs)
    fields = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
    return {
        "name": name,
        "ptx": text,
        "launch": [getattr(launch, f)._expr.text for f in fields],
        "extra": [type(e).__name__ + " " + e._expr.text for e in extra],
    }


def signature(node: str) -> tuple[list[str], dict[str, str], int, list[str]]:
    """Worker: what TensorRT read from the annotations."""
    definition = _definition(node)
    attributes = {n: t.__name__ for n, t in definition.input_attrs.items()}
    return (
        definition.input_tensor_names,
        attributes,
        definition.num_outputs,
        definition.aot_impl_attr_names,
    )


def rope_inputs(dtype: str = "bf16", width: int = 4096) -> list[tuple[str, tuple[int | str, ...]]]:
    half = width // 64
    return [
        (dtype, ("B", "Tq", width)),
        (dtype, ("B", "Tk", width)),
        *[(dtype, (width,))] * 2,
        *[(dtype, ("B", 32, "Tq", half))] * 2,
        *[(dtype, ("B", 32, "Tk", half))] * 2,
    ]


ROPE_VALUES = [32, 1e-6]


def test_signatures(tensorrt: StubTensorRT) -> None:
    names, attributes, outputs, used = tensorrt.call(signature, "QkNormRope")
    assert names == [t.name for t in rope.SPLIT.inputs]
    assert attributes == {"num_heads": "int", "epsilon": "float"}
    assert (outputs, used) == (2, ["num_heads", "epsilon"])
    names, attributes, outputs, _ = tensorrt.call(signature, "GatedResidual")
    assert (names, attributes, outputs) == (["x", "y", "gate", "index"], {}, 1)


def test_shapes_and_types(tensorrt: StubTensorRT) -> None:
    attributes = {"num_heads": 32, "epsilon": 1e-6}
    got = tensorrt.call(describe, "QkNormRope", rope_inputs(), attributes)
    assert got == [("BF16", ["B", "32", "Tq", "128"]), ("BF16", ["B", "32", "Tk", "128"])]
    inputs = [("bf16", ("B", "T", 4096)), *[("bf16", ("U", 4096))] * 2, ("i64", ("B", "T"))]
    got = tensorrt.call(describe, "AdalnModulateQuant", inputs, {"epsilon": 1e-6})
    assert got == [("FP8", ["B", "T", "4096"]), ("FLOAT", ["B", "T", "1"])]


def test_types_before_shapes(tensorrt: StubTensorRT) -> None:
    got = tensorrt.call(describe_before_shapes, "QkNormRope", ["fp16"] * 8, [3, 3, 1, 1] + [4] * 4)
    assert got == ["HALF", "HALF"]
    got = tensorrt.call(describe_before_shapes, "QuantizeKeys", ["bf16"] * 2, [4, 4])
    assert got == ["FP8", "FLOAT"]
    got = tensorrt.call(describe_before_shapes, "QuantizeValues", ["bf16"] * 2, [3, 3])
    assert got == ["FP8"]


def test_kernel_for_tensorrt(tensorrt: StubTensorRT, artifacts: Path) -> None:
    # an ONNX float is 32 bits wide
    got = tensorrt.call(implement, "QkNormRope", rope_inputs(), [32, 9.999999974752427e-07])
    assert got["name"] == "qk_norm_rope"
    assert got["ptx"] == (artifacts / "qk_norm_rope.bf16-32x128.90a.ptx").read_text()
    assert got["launch"] == ["(2 * max(Tq, Tk))", "B", "1", "128", "1", "1", "16"]
    assert got["extra"] == ["SymInt32 Tq", "SymInt32 Tk"]
    # inputs, integers, outputs: TensorRT passes exactly what the entry takes
    expected = ("u64",) * 8 + ("u32",) * 2 + ("u64",) * 2
    assert ptx.read_entry(got["ptx"]).types == expected


def test_kernel_without_integers(tensorrt: StubTensorRT) -> None:
    inputs = [("bf16", ("B", "T", 4096)), *[("bf16", ("U", 4096))] * 2, ("i64", ("B", "T"))]
    got = tensorrt.call(implement, "AdalnModulateQuant", inputs, [1e-6])
    assert got["launch"][:3] == ["(B * T)", "1", "1"]
    assert got["extra"] == []
    assert ptx.read_entry(got["ptx"]).types == ("u64",) * 6


def test_attention_for_tensorrt(tensorrt: StubTensorRT) -> None:
    """FP16, and a bias of keys or of every query: the engine's shapes decide when it runs."""
    inputs = [
        *[("fp16", ("B", 32, n, 64)) for n in "TS"],
        ("fp16", ("B", "S", 2048)),
        ("fp16", ("B", 1, "R", "S")),
    ]
    got = tensorrt.call(describe, "MaskedFlashAttention", inputs, {"scale": 0.125})
    assert got == [("HALF", ["B", "T", "2048"])]
    got = tensorrt.call(implement, "MaskedFlashAttention", inputs, [0.125])
    tiles = flash.CONFIGS[64]["90a"]
    assert got["launch"][:3] == [f"ceil_div(T, {tiles.tiles['BLOCK_M']})", "(B * 32)", "1"]
    assert got["launch"][3:] == [str(32 * tiles.num_warps), "1", "1", "114688"]
    assert got["extra"] == ["SymInt32 T", "SymInt32 S", "SymInt32 32", "SymInt32 R"]
    expected = ("u64",) * 4 + ("u32",) * 4 + ("u64",)
    assert ptx.read_entry(got["ptx"]).types == expected
    with pytest.raises(KernelError, match=r"for T=fp16, .*Dh=64.*scale=0\.088"):
        tensorrt.call(implement, "MaskedFlashAttention", inputs, [128**-0.5])


def test_shapes_of_eight_bit_attention(tensorrt: StubTensorRT) -> None:
    keys = [("bf16", ("B", 32, "T", 128)), ("bf16", ("B", 32, 1, 128))]
    got = tensorrt.call(describe, "QuantizeKeys", keys, {})
    assert got == [
        ("FP8", ["B", "32", "T", "128"]),
        ("FLOAT", ["B", "32", "ceil_div(T, 64)"]),
    ]
    values = [("bf16", ("B", "S", 4096)), ("bf16", ("B", 1, 4096))]
    got = tensorrt.call(describe, "QuantizeValues", values, {})
    assert got == [("FP8", ["B", "4096", "(64 * ceil_div(S, 64))"])]


@pytest.mark.parametrize(
    ("inputs", "values", "message"),
    [
        (rope_inputs("fp32"), ROPE_VALUES, "T=fp32.*there are: bf16-32x128, bf16-32x64"),
        (rope_inputs(width=3840), ROPE_VALUES, "no qk_norm_rope kernel for .*W=3840"),
        (rope_inputs(), [16, 1e-6], "no qk_norm_rope kernel for .*H=16"),
        (rope_inputs(), [32, 1e-5], "no qk_norm_rope kernel for .*epsilon=1e-05"),
        (rope_inputs("fp16"), ROPE_VALUES, r"no kernel .*fp16-32x128\.90a\.json; build it"),
        (
            [*rope_inputs()[:-1], ("fp16", ("B", 32, "Tk", 64))],
            ROPE_VALUES,
            "ltx2rt::QkNormRope: k_sin is fp16, expected bf16",
        ),
        (
            [*rope_inputs()[:-1], ("bf16", ("B", "Tk", 4096))],
            ROPE_VALUES,
            r"k_sin has 3 dimensions where \[B, H, Tk, W // H // 2\] has 4",
        ),
    ],
    ids=["dtype", "width", "heads", "epsilon", "not built", "mixed dtypes", "rank"],
)
def test_refusals(
    tensorrt: StubTensorRT, inputs: Any, values: list[int | float], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        tensorrt.call(implement, "QkNormRope", inputs, values)


def test_no_tensorrt_is_one_sentence() -> None:
    """In a process without it."""
    script = (
        "import sys; sys.modules['tensorrt'] = None\n"
        "from pathlib import Path\n"
        "from ltx2rt_kernels.plugin import register_plugins\n"
        "register_plugins(Path('.'), '90a')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ltx2rt_kernels.errors.KernelError: plugins need TensorRT (")
    assert last.endswith("install ltx2rt with its extra tensorrt")
