"""Launches of an engine, read from the text of its program."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt.bundle.engine_program import Launches, launches_of

VERSION = "1.7.1.1"


def function(name: str, kind: int, inputs: str = '"a.1"', stream: int = 0) -> str:
    return (
        f"  function={{ name={name} fqn={name}_0x12 args={{ {inputs} }} input_args={{ {inputs} }} "
        f"kernel_kind={kind} reduction_algo_kind=0 stream={stream} shmem=0 }}"
    )


PROGRAM = "\n".join(
    (
        "main {",
        " label bb1: ",
        '  tensor={ name="x" }',
        function("__myl_CastMulMean", 2),
        '  fully_connected={ name="node_MatMul_150" output={"y" } stream=0 m=0 }',
        function("__myl_Resh", 1, '"attn1.to_v.bias.1"'),
        function("__myl_Resh", 1, '"__mye12" "b.1"'),
        "  runtime_fusion={ name=__myl_FcAddSigmMul input_args={ } stream=0 }",
        '  fully_connected={ name="inside the fusion" stream=0 m=0 }',
        function("__myl_ReshTranReshMove", 1),
        function("__myl_MulAdd", 1, stream=1),
        function("_gemm_mha_v2", 7),
        "}",
        "",
    )
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "x.engine"
    path.write_bytes(b"\0binary\xff\n" + PROGRAM.encode() + b"\0\n" + PROGRAM.encode() + b"\0")
    return path


def test_launches_by_kind_for_one_of_two_buckets(engine: Path) -> None:
    found = launches_of(engine, "tensorrt-rtx", VERSION, 2)
    assert found == Launches(
        gemms=1,
        fused_gemms=1,
        attentions=1,
        reductions=1,
        pointwise=1,
        layouts=1,
        copies=2,
        copied=("attn1.to_v.bias",),
        streams=2,
    )
    assert found.total == 8
    assert found.text() == (
        "8 launches a run on 2 streams: 2 GEMMs (1 with an epilogue), 1 fused attentions, "
        "1 reductions, 1 pointwise, 1 only change layouts, 2 only copy (first attn1.to_v.bias)"
    )


def test_what_is_not_known_is_not_guessed(engine: Path, tmp_path: Path) -> None:
    assert launches_of(engine, "tensorrt-rtx", "1.8.0", 2) is None
    assert launches_of(engine, "tensorrt", VERSION, 2) is None
    assert launches_of(engine, "tensorrt-rtx", VERSION, 4) is None
    empty = tmp_path / "empty.engine"
    empty.write_bytes(b"\0nothing")
    assert launches_of(empty, "tensorrt-rtx", VERSION, 1) is None
