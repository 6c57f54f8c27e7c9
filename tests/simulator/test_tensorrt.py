"""Simulated engines: what is refused, when they run, and what the mistakes of a runtime do."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.simulator.calls import Calls
from tests.simulator.driver import SimulatedDriver
from tests.simulator.engine_program import Boundary, Program, from_bits, to_bits

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")

WIDTH = 4


def program(dtype: str = "float32", backend: str = "tensorrt-rtx") -> Program:
    """`y[n, 4] = x[n, 4] * w[4] + 1`, for 1 to 8 and 9 to 64 rows."""
    elem = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}[dtype]
    values = [
        helper.make_tensor_value_info(n, elem, s)
        for n, s in (("x", ("n", WIDTH)), ("w", (WIDTH,)), ("y", ("n", WIDTH)))
    ]
    one = helper.make_tensor("one", elem, (1,), [1.0])
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "one"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "toy", values[:2], values[2:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    ranges = [((a, WIDTH), (b, WIDTH), (c, WIDTH)) for a, b, c in ((1, 4, 8), (9, 16, 64))]
    return Program(
        backend=backend,
        version="1.7.1.116",
        targets=("sm89",),
        inputs=(Boundary("x", dtype, ("n", WIDTH)), Boundary("w", dtype, (WIDTH,))),
        outputs=(Boundary("y", dtype, ("n", WIDTH)),),
        profiles=tuple({"x": r} for r in ranges),
        graph=model.SerializeToString(),
    )


class Bench:
    """One context with its buffers, all of them large enough for eight rows."""

    def __init__(self, trt: Any, dtype: str = "float32", *, strategy: str = "EAGER") -> None:
        self.c = Calls()
        self.stream = self.c.stream()
        self.logger = trt.Logger()
        self.runtime = trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(program(dtype).to_bytes())
        config = self.engine.create_runtime_config()
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config.set_execution_context_allocation_strategy(managed)
        kind = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kind[strategy]
        self.context = self.engine.create_execution_context(config)
        self.x, self.w, self.y = (self.c.floats(*[0.0] * WIDTH * 8) for _ in range(3))
        self.scratch = int(self.c.cuMemAlloc(4096))
        self.rows(1)

    def rows(self, count: int) -> None:
        assert self.context.set_input_shape("x", (count, WIDTH))
        for name, address in (("x", self.x), ("w", self.w), ("y", self.y)):
            assert self.context.set_tensor_address(name, address)
        size = self.context.update_device_memory_size_for_shapes()
        self.context.set_device_memory(self.scratch, size)

    def put(self, address: int, values: Any) -> None:
        array = np.ascontiguousarray(values)
        self.c.cuMemcpyHtoD(address, array.ctypes.data, array.nbytes)

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(self.stream))

    def wait(self) -> list[float]:
        self.c.cuStreamSynchronize(self.stream)
        return self.c.read(self.y, WIDTH)

    @property
    def said(self) -> str:
        return str(self.logger.messages[-1][1])


def ready(trt: Any, **options: Any) -> Bench:
    bench = Bench(trt, **options)
    bench.put(bench.x, np.array([1, 2, 3, 4], np.float32))
    bench.put(bench.w, np.array([10, 10, 10, 10], np.float32))
    return bench


def test_an_engine_runs_in_stream_order(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    b = ready(tensorrt_rtx)
    other = b.c.pinned(5, 5, 5, 5)
    b.c.up(b.x, other, b.stream)
    assert b.run()
    assert gpu.executed()[-1].kind == "copy"  # of the set-up: nothing ran yet
    assert b.wait() == [51, 51, 51, 51]
    assert gpu.operations()[-2].label == "y"
    assert gpu.counters().launches == 1


def test_addresses_are_those_of_the_time_of_the_call(
    gpu: SimulatedDriver, tensorrt_rtx: Any
) -> None:
    b = ready(tensorrt_rtx)
    assert b.run()
    b.context.set_tensor_address("x", b.w)
    assert b.wait() == [11, 21, 31, 41]
    assert b.run()
    assert b.wait() == [101, 101, 101, 101]


def test_sixteen_bit_tensors_are_bit_patterns(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    b = Bench(tensorrt_rtx, "bfloat16")
    values = np.array([1.0, 2.5, -3.0, 0.1], np.float32)
    b.put(b.x, to_bits(values, "bfloat16"))
    b.put(b.w, to_bits(np.full(4, 2, np.float32), "bfloat16"))
    assert b.run()
    b.c.cuStreamSynchronize(b.stream)
    raw = gpu.view(b.y, 8).view(np.uint16)
    rounded = from_bits(to_bits(values, "bfloat16"), "bfloat16")
    expected = from_bits(to_bits(rounded * 2 + 1, "bfloat16"), "bfloat16")
    assert from_bits(raw, "bfloat16").tolist() == expected.tolist()


def test_bfloat16_rounds_to_even_and_keeps_nan() -> None:
    values = np.array([1.00390625, 1.01171875, -0.0, np.inf, np.nan, 3e38], np.float32)
    found = from_bits(to_bits(values, "bfloat16"), "bfloat16")
    assert found[:4].tolist() == [1.0, 1.015625, -0.0, np.inf]
    assert np.isnan(found[4])
    assert from_bits(to_bits(found[:4], "bfloat16"), "bfloat16").tolist() == found[:4].tolist()


def test_a_wrong_dtype_gives_wrong_numbers(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    """Defect A1 of the first runtime: float32 was uploaded where bfloat16 is read."""
    b = Bench(tensorrt_rtx, "bfloat16")
    b.put(b.x, np.array([1, 2, 3, 4], np.float32))  # not bits of bfloat16
    b.put(b.w, to_bits(np.full(4, 2, np.float32), "bfloat16"))
    assert b.run()
    b.c.cuStreamSynchronize(b.stream)
    found = from_bits(gpu.view(b.y, 8).view(np.uint16), "bfloat16")
    assert found.tolist() != [3, 5, 7, 9]


def test_a_buffer_that_is_too_small_is_an_illegal_address(
    gpu: SimulatedDriver, tensorrt_rtx: Any
) -> None:
    b = ready(tensorrt_rtx)
    b.rows(8)
    small = b.c.floats(*[1.0] * WIDTH)
    b.context.set_tensor_address("x", small)
    assert b.run()
    assert b.c.api.cuStreamSynchronize(b.stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "past the end" in gpu.take_problems()[0]


def test_what_lies_in_the_scratch_memory_is_lost(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    b = ready(tensorrt_rtx)
    size = b.context.update_device_memory_size_for_shapes()
    assert 0 < size <= 4096
    b.context.set_device_memory(b.scratch, size)
    b.put(b.scratch, np.array([1, 2, 3, 4], np.float32))
    b.context.set_tensor_address("x", b.scratch)  # an arena that overlaps an input
    assert b.run()
    assert b.wait() != [11, 21, 31, 41]


@pytest.mark.parametrize("shared", [True, False])
def test_two_streams_must_not_share_scratch_memory(
    gpu: SimulatedDriver, tensorrt_rtx: Any, shared: bool
) -> None:
    first, second = ready(tensorrt_rtx), ready(tensorrt_rtx)
    if shared:
        second.scratch = first.scratch
        second.rows(1)
    assert first.run()
    assert second.run()
    problems = gpu.take_problems()
    assert bool(problems) == shared
    assert all("race" in p for p in problems)
    assert first.wait() == second.wait() == [11, 21, 31, 41]


def refusals(b: Bench) -> dict[str, Any]:
    size = b.context.update_device_memory_size_for_shapes()

    def after(change: Any) -> bool:
        change()
        return b.run()

    return {
        "no profile 2": lambda: b.context.set_optimization_profile_async(2, b.stream),
        "is not in (1, 4)..(8, 4)": lambda: b.context.set_input_shape("x", (9, WIDTH)),
        "z is no tensor": lambda: b.context.set_tensor_address("z", b.x),
        "z is no input": lambda: b.context.set_input_shape("z", (1,)),
        "multiple of 256": lambda: b.context.set_tensor_address("x", b.x + 4),
        "are needed": lambda: after(lambda: b.context.set_device_memory(b.scratch, size - 1)),
        "Neither address nor allocator is set for x": lambda: after(
            lambda: b.context.set_tensor_address("x", 0)
        ),
        "no shape is set for x": lambda: after(
            lambda: b.context.set_optimization_profile_async(1, b.stream)
        ),
    }


REFUSALS = (
    "no profile 2",
    "is not in (1, 4)..(8, 4)",
    "z is no tensor",
    "z is no input",
    "multiple of 256",
    "are needed",
    "Neither address nor allocator is set for x",
    "no shape is set for x",
)


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_is_refused_says_why(gpu: SimulatedDriver, tensorrt_rtx: Any, reason: str) -> None:
    b = ready(tensorrt_rtx)
    assert b.run()
    b.wait()
    assert refusals(b)[reason]() is False
    assert reason in b.said


def test_arguments_of_a_wrong_type_raise(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    b = ready(tensorrt_rtx)
    with pytest.raises(TypeError):
        b.context.set_input_shape("x", np.array([1, WIDTH]))
    with pytest.raises(TypeError):
        b.engine.create_runtime_config().cuda_graph_strategy = 1


def test_engines_tell_their_tensors_and_memory(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    trt = tensorrt_rtx
    engine = ready(trt, dtype="bfloat16").engine
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert names == ["x", "w", "y"]
    assert [engine.get_tensor_mode(n).name for n in names] == ["INPUT", "INPUT", "OUTPUT"]
    assert engine.get_tensor_dtype("x") == trt.DataType.BF16
    assert engine.get_tensor_shape("x") == (-1, WIDTH)
    assert engine.get_tensor_profile_shape("x", 1) == [(9, 4), (16, 4), (64, 4)]
    sizes = [engine.get_device_memory_size_for_profile_v2(i) for i in range(2)]
    assert sizes[0] < sizes[1] == engine.device_memory_size_v2
    context = engine.create_execution_context(engine.create_runtime_config())
    assert context.infer_shapes() == ["x"]
    assert context.set_input_shape("x", (8, WIDTH))
    assert context.infer_shapes() == []
    assert context.update_device_memory_size_for_shapes() == sizes[0]
    assert context.get_tensor_shape("y") == (8, WIDTH)


def test_a_file_of_another_kind_is_refused(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    b = ready(tensorrt_rtx)
    assert b.runtime.deserialize_cuda_engine(b"something") is None
    assert "not a simulated engine" in b.said
    other = program(backend="tensorrt").to_bytes()
    assert b.runtime.deserialize_cuda_engine(other) is None
    assert "built by tensorrt" in b.said


@pytest.mark.parametrize(
    ("strategy", "warm", "said"),
    [("EAGER", True, ""), ("NONE", True, ""), ("LAZY", True, "EAGER"), ("EAGER", False, "once")],
)
def test_a_capture_needs_final_kernels_and_one_run(
    gpu: SimulatedDriver, tensorrt_rtx: Any, strategy: str, warm: bool, said: str
) -> None:
    b = ready(tensorrt_rtx, strategy=strategy)
    if warm:
        assert b.run()
        b.wait()
    assert b.context.is_stream_capturable(b.stream) == (strategy != "LAZY")
    b.c.cuStreamBeginCapture(b.stream, b.c.api.CUstreamCaptureMode(1))
    assert b.run() == (not said)
    graph = b.c.cuGraphInstantiate(b.c.cuStreamEndCapture(b.stream), 0)
    if said:
        assert said in b.said
        return
    launches = gpu.counters().graph_launches
    b.put(b.x, np.array([2, 2, 2, 2], np.float32))
    b.c.cuGraphLaunch(graph, b.stream)
    assert b.wait() == [21, 21, 21, 21]
    assert gpu.counters().graph_launches == launches + 1


def test_a_replay_does_not_see_new_addresses(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    b = ready(tensorrt_rtx)
    assert b.run()
    b.wait()
    b.c.cuStreamBeginCapture(b.stream, b.c.api.CUstreamCaptureMode(1))
    assert b.run()
    graph = b.c.cuGraphInstantiate(b.c.cuStreamEndCapture(b.stream), 0)
    b.context.set_tensor_address("x", b.w)
    b.c.cuGraphLaunch(graph, b.stream)
    assert b.wait() == [11, 21, 31, 41]


def test_growing_memory_in_a_stage_is_counted(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    b = ready(tensorrt_rtx)
    before = gpu.counters()
    for rows, grows in ((1, False), (8, True), (4, False)):
        if grows:
            b.c.cuMemFree(b.scratch)
            b.scratch = int(b.c.cuMemAlloc(8192))
        b.rows(rows)
        assert b.run()
    b.wait()
    done = gpu.counters() - before
    assert (done.allocations, done.frees, done.launches) == (1, 1, 3)
    assert done.hidden_synchronizations == 1  # the free waited


def test_the_first_logger_is_the_only_one(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    trt = tensorrt_rtx
    first, second = trt.Logger(), trt.Logger()
    trt.Runtime(first)
    runtime = trt.Runtime(second)
    assert "current new logger is ignored" in first.messages[-1][1]
    runtime.deserialize_cuda_engine(b"broken")
    assert second.messages == []
    assert "not a simulated engine" in first.messages[-1][1]
    del first
    gc.collect()
    runtime.deserialize_cuda_engine(b"broken")
    assert "first logger, which is gone" in gpu.take_problems()[0]


def test_compiled_kernels_are_kept(gpu: SimulatedDriver, tensorrt_rtx: Any) -> None:
    engine = ready(tensorrt_rtx).engine
    config = engine.create_runtime_config()
    cache = config.create_runtime_cache()
    config.set_runtime_cache(cache)
    assert config.get_runtime_cache() is cache
    bench = ready(tensorrt_rtx)
    config.set_execution_context_allocation_strategy(
        tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    bench.context = engine.create_execution_context(config)
    for rows, kinds in ((1, 1), (2, 2), (1, 2)):
        bench.rows(rows)
        assert bench.run()
        assert len(cache.kernels) == kinds
    bench.wait()
    again = config.create_runtime_cache()
    assert again.deserialize(bytes(cache.serialize()))
    assert again.kernels == cache.kernels
    assert not again.deserialize(b"of another version")
