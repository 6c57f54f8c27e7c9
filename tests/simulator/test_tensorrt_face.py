"""The simulated library shows nothing that the vendors' own bindings do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.stub_tensorrt import COMPILER, StubTensorRT
from tests.simulator.faces import Face, differences, real_face, simulated_face
from tests.simulator.tensorrt import VERSIONS, make_module

#: what the runtime calls today or will call: it must be there
WANTED = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "create_runtime_config",
        "device_memory_size_v2",
        "get_device_memory_size_for_profile_v2",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "num_io_tensors",
        "num_optimization_profiles",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
}
WANTED_OF_RTX = {
    "IExecutionContext": ("is_stream_capturable",),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ),
    "IRuntimeCache": ("deserialize", "serialize"),
}


def missing(face: Face, wanted: dict[str, tuple[str, ...]]) -> list[str]:
    return [f"{c}.{n}" for c, names in wanted.items() for n in names if n not in face[c]]


def test_rtx_is_like_the_real_bindings() -> None:
    bindings = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    simulated, real = simulated_face(make_module("tensorrt_rtx")), real_face("tensorrt_rtx")
    assert bindings.__version__ == VERSIONS["tensorrt_rtx"]
    assert differences(simulated, real) == []
    for wanted in (WANTED, WANTED_OF_RTX):
        assert missing(simulated, wanted) == missing(real, wanted) == []


def test_tensorrt_is_like_the_real_bindings(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-python is not installed")
    if COMPILER is None:
        pytest.skip("no C compiler is installed")
    worker = StubTensorRT(tmp_path)
    try:
        real = worker.call(real_face, "tensorrt_bindings")
    finally:
        worker.close()
    simulated = simulated_face(make_module("tensorrt"))
    assert differences(simulated, real) == []
    assert missing(simulated, WANTED) == missing(real, WANTED) == []


@pytest.mark.parametrize(
    ("attribute", "arguments", "said"),
    [
        ("execute_async_v4", ["stream_handle"], "is not in the bindings"),
        ("execute_async_v3", ["stream"], "is [['stream_handle']] in the bindings"),
        ("execute_async_v3", None, "is [['stream_handle']] in the bindings, not None"),
        ("device_memory", ["size"], "is None in the bindings"),
    ],
)
def test_a_name_or_argument_that_differs_is_found(
    attribute: str, arguments: list[str] | None, said: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    real = real_face("tensorrt_rtx")
    (found,) = differences({"IExecutionContext": {attribute: arguments}}, real)
    assert said in found


def test_a_value_that_differs_is_found() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert differences({"DataType": {"BF16": 6}}, real_face("tensorrt_rtx"))
