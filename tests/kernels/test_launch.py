"""Launching without a GPU: descriptions, sizes, grids, arguments, refusals, and the driver calls on
a driver that only takes notes.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltx2rt_kernels import build, catalog, launch
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.expressions import evaluate, solve
from ltx2rt_kernels.launch import Description, Kernel, Tensor
from ltx2rt_kernels.qk_norm_rope.spec import SPLIT, kernel
from ltx2rt_kernels.support import supports


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kernels")
    list(build.write_artifacts(directory, [kernel(SPLIT, "bf16", 32, 64)], ["90a"]))
    return directory


@pytest.fixture
def path(artifacts: Path) -> Path:
    return launch.find_artifact(artifacts, "qk_norm_rope.bf16-32x64", (9, 0))


def tensors(batch: int = 2, tq: int = 63, tk: int = 111) -> dict[str, Tensor]:
    shapes = {"q": (batch, tq, 2048), "k": (batch, tk, 2048), "q_weight": (2048,)}
    shapes |= {"k_weight": (2048,)}
    for x, tokens in (("q", tq), ("k", tk)):
        shapes |= {f"{x}_{t}": (batch, 32, tokens, 32) for t in ("cos", "sin")}
        shapes |= {f"{x}_out": (batch, 32, tokens, 64)}
    return {
        name: Tensor(pointer=0x7000_0000_0000 + 4096 * i, shape=shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def test_grid_and_arguments(path: Path) -> None:
    about, given = Description.read(path), tensors()
    sizes = about.dimensions(given)
    assert sizes == {"H": 32, "W": 2048, "B": 2, "Tq": 63, "Tk": 111}
    config = about.launch_config(sizes)
    assert (config.grid, config.threads, config.shared) == ((222, 2, 1), 128, 16)
    values = about.arguments(given, sizes)
    order = [t.name for t in SPLIT.inputs]
    assert [v.value for v in values] == [
        *(given[n].pointer for n in order),
        *(63, 111),
        *(given[n].pointer for n in ("q_out", "k_out")),
    ]
    assert [ctypes.sizeof(v) for v in values] == [8] * 8 + [4, 4] + [8, 8]


def test_wrong_tensors_are_listed_together(path: Path) -> None:
    given = tensors()
    given["q"] = Tensor(pointer=8, shape=(2, 63, 4096))
    given["k_cos"] = Tensor(pointer=0, shape=(2, 32, 111))
    del given["k_sin"]
    given["mask"] = Tensor(pointer=0, shape=(1,))
    with pytest.raises(KernelError) as error:
        Description.read(path).dimensions(given)
    for part in (
        "5 problems",
        "k_sin is missing",
        "it has no tensor mask",
        "q dimension W is 4096, expected 2048",
        "q is at 0x8, not a multiple of 16 bytes",
        "k_cos has 3 dimensions where [B, H, Tk, W // H // 2] has 4",
    ):
        assert part in str(error.value)


def test_impossible_grids_are_refused(path: Path) -> None:
    about = Description.read(path)
    for batch in (0, 70_000):
        with pytest.raises(KernelError, match=f"cannot run as 2 x {batch} x 1 blocks"):
            about.launch_config({"B": batch, "Tq": 1, "Tk": 1})


def test_missing_and_foreign_artifacts(artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"compute capability 8\.9 in .*there are: 90a"):
        launch.find_artifact(artifacts, "qk_norm_rope.bf16-32x64", (8, 9))
    with pytest.raises(KernelError, match=r"build it with ltx2rt_kernels\.build"):
        Description.read(tmp_path / "nothing.json")
    (tmp_path / "old.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(KernelError, match="has schema 0, this version reads 2"):
        Description.read(tmp_path / "old.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(KernelError, match="is not a kernel description"):
        Description.read(tmp_path / "broken.json")


def test_older_code_serves_newer_cards(tmp_path: Path) -> None:
    (tmp_path / "op.v.80.json").touch()
    assert launch.find_artifact(tmp_path, "op.v", (8, 6)).name == "op.v.80.json"
    assert launch.find_artifact(tmp_path, "op.v", (8, 9)).name == "op.v.80.json"
    (tmp_path / "op.v.89.json").touch()
    assert launch.find_artifact(tmp_path, "op.v", (8, 9)).name == "op.v.89.json"


@pytest.mark.skipif(
    ctypes.util.find_library("cuda") is not None, reason="this machine has an NVIDIA driver"
)
def test_no_driver_is_one_sentence(path: Path) -> None:
    """cuda-bindings is installed, the driver is not."""
    with pytest.raises(KernelError, match="launching kernels needs an NVIDIA"):
        Kernel(path)


def test_no_bindings_is_one_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(KernelError, match="install ltx2rt with its extra cuda"):
        Kernel(path)


def test_damaged_cubin_is_refused(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text())
    copy.with_suffix(".cubin").write_bytes(path.with_suffix(".cubin").read_bytes() + b"\0")
    with pytest.raises(KernelError, match="differs from its description"):
        Kernel(copy)
    copy.with_suffix(".cubin").unlink()
    with pytest.raises(KernelError, match=r"no kernel .*\.90a\.cubin; build it with"):
        Kernel(copy)


class NotedDriver:
    """A driver that notes calls, and what a launch points at."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name == self.fails:
                return (SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE"),)
            if name == "cuLaunchKernel":
                count = 12
                addresses = (ctypes.c_void_p * count).from_address(arguments[-2])
                kinds = [ctypes.c_uint64] * 8 + [ctypes.c_int32] * 2 + [ctypes.c_uint64] * 2
                values = [k.from_address(a).value for k, a in zip(kinds, addresses, strict=True)]
                arguments = (*arguments[:-2], values, arguments[-1])
            self.calls.append((name, *arguments))
            return (0, f"{name} result")

        return call


def test_driver_calls(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = NotedDriver()
    monkeypatch.setattr(launch, "_driver", lambda: driver)
    given = tensors(batch=1, tq=5, tk=3)
    with Kernel(path) as loaded:
        loaded(given, stream=77)
    cubin = path.with_suffix(".cubin").read_bytes()
    pointers = [given[t.name].pointer for t in SPLIT.inputs]
    outputs = [given["q_out"].pointer, given["k_out"].pointer]
    function = "cuModuleGetFunction result"
    arguments = [*pointers, 5, 3, *outputs]
    assert driver.calls == [
        ("cuModuleLoadData", cubin),
        ("cuModuleGetFunction", "cuModuleLoadData result", b"qk_norm_rope"),
        ("cuLaunchKernel", function, 10, 1, 1, 128, 1, 1, 16, 77, arguments, 0),
        ("cuModuleUnload", "cuModuleLoadData result"),
    ]


def test_large_shared_memory_is_asked_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {**json.loads(path.read_text()), "shared": 131072}
    (tmp_path / path.name).write_text(json.dumps(about))
    cubin = path.with_suffix(".cubin").read_bytes()
    (tmp_path / path.name).with_suffix(".cubin").write_bytes(cubin)
    driver = NotedDriver()
    monkeypatch.setattr(launch, "_driver", lambda: driver)
    Kernel(tmp_path / path.name).close()
    function = "cuModuleGetFunction result"
    assert ("cuFuncSetAttribute", function, "shared", 131072) in driver.calls


def test_driver_errors_name_the_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_driver", lambda: NotedDriver(fails="cuModuleLoadData"))
    with pytest.raises(KernelError, match="cuModuleLoadData says CUDA_ERROR_INVALID_VALUE"):
        Kernel(path)


def test_a_kernel_that_cannot_be_used_is_unloaded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = NotedDriver(fails="cuModuleGetFunction")
    monkeypatch.setattr(launch, "_driver", lambda: driver)
    with pytest.raises(KernelError, match="cuModuleGetFunction says CUDA_ERROR_INVALID_VALUE"):
        Kernel(path)
    assert [name for name, *_ in driver.calls] == ["cuModuleLoadData", "cuModuleUnload"]


def test_integers_must_be_what_was_compiled_for(path: Path) -> None:
    """Wide loads are misaligned otherwise, and the last channels stay unwritten."""
    about = dataclasses.replace(
        Description.read(path),
        parameters=(("W", "i32"),),
        scalars={"W": "W"},
        multiples={"W": 64},
    )
    assert about.arguments({}, {"W": 4096})[0].value == 4096
    with pytest.raises(KernelError, match="W is 4112, not a multiple of 64"):
        about.arguments({}, {"W": 4112})
    with pytest.raises(KernelError, match="W is 2147483648, beyond 32 bits"):
        about.arguments({}, {"W": 2**31})


def loaded(modules: str, of: list[str]) -> str:
    """Which of these packages a fresh interpreter has after importing modules."""
    script = (
        f"import sys, {modules};"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    )
    command = [sys.executable, "-c", script, *of]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


HEAVY = ["torch", "triton", "onnx", "numpy", "cuda", "tensorrt", "ltx2rt", "ltx2rt_export"]


def test_launch_is_lean() -> None:
    """What the runtime imports: no numpy, no CUDA, nothing heavy."""
    assert loaded("ltx2rt_kernels.launch", HEAVY) == ""


def test_heavy_packages_stay_in_the_operators() -> None:
    """Only references, Triton sources and ONNX functions import torch, triton and onnx."""
    modules = [f"ltx2rt_kernels.{m}" for m in ("build", "gates", "plugin", "support")]
    modules += [f"ltx2rt_kernels.{package}.spec" for package in catalog.PACKAGES]
    assert loaded(", ".join(modules), HEAVY) == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * max(Tq, Tk)", 14),
        ("cdiv(Tq * B, 4)", 4),
        ("min(Tq, Tk) - 3 + Tq // 2", 4),
        ("7", 7),
    ],
)
def test_expressions(text: str, value: int) -> None:
    assert evaluate(text, {"Tq": 5, "Tk": 7, "B": 3}) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Tx", "uses 'Tx', which has no value; known: B"),
        ("B / 2", "is not an expression of integers"),
        ("__import__('os')", "is not an expression of integers"),
        ("B.real", "is not an expression of integers"),
        ("cdiv(B)", "is not an expression of integers"),
        ("B +", "is not an expression"),
        ("1.5", "is not an expression of integers"),
    ],
)
def test_expressions_refuse(text: str, message: str) -> None:
    with pytest.raises(KernelError) as error:
        evaluate(text, {"B": 2})
    assert message in str(error.value)


def test_solve() -> None:
    sizes = {"H": 4}
    assert solve(("B", "H", "B * H"), (3, 4, 12), sizes) == []
    assert sizes == {"H": 4, "B": 3}
    assert solve(("B", "H"), (3, 5), sizes) == ["dimension H is 5, expected 4"]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (("qk_norm_rope", "90a", "bf16", 128), None),
        (("adaln_modulate_quant", "89", "bf16"), None),
        (("softmax", "90a", "bf16"), "there is no operator softmax; there are: qk_norm_rope"),
        (("qk_norm_rope", "75", "bf16"), "there is no architecture 75; there are: 80, 89"),
        (
            ("adaln_modulate_quant", "80", "bf16"),
            "adaln_modulate_quant has no kernel for architecture 80; it has: 100a, 120a, 89, 90a",
        ),
        (
            ("qk_norm_rope", "90a", "fp32", 128),
            "qk_norm_rope has no kernel for dtype fp32; it has: bf16, fp16",
        ),
        (
            ("qk_norm_rope", "90a", "bf16", 96),
            "qk_norm_rope has no kernel for head_dim 96; it has: 128, 64",
        ),
        (
            ("qk_norm_rope_interleaved", "90a", "bf16", 128),
            "qk_norm_rope_interleaved ships no kernel; its function body runs everywhere",
        ),
    ],
)
def test_supports(question: tuple[Any, ...], reason: str | None) -> None:
    answer = supports(*question)
    assert answer == reason if reason is None else str(answer).startswith(reason)
