"""Bundles for ONNX Runtime on a GPU: by address on our memory and stream, with real numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import ltx2rt
from ltx2rt.backends import onnxruntime_cuda
from ltx2rt.backends.onnxruntime import OrtOptions
from ltx2rt.config import RuntimeConfig
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.engines.stage import EngineStage
from tests.parity.command_line import build_flags
from tests.parity.command_line import ltx2rt as command
from tests.simulator.fixtures import Simulate
from tests.simulator.onnxruntime_cuda import use_simulated_cuda
from tests.simulator.test_pipelines import assert_equal, make_clip

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")

ON_GPU = RuntimeConfig(threads=1, device=0)


@pytest.mark.parametrize(("memory", "residency"), [(8 << 30, "resident"), (12 << 20, "stage")])
def test_a_gpu_gives_what_the_cpu_gives(
    simulate: Simulate,
    demo_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: int,
    residency: str,
) -> None:
    expected = make_clip(demo_bundle)
    gpu = simulate(memory_bytes=memory)
    use_simulated_cuda(monkeypatch)
    found = make_clip(demo_bundle, dataclasses.replace(ON_GPU, residency=residency))
    assert_equal(found, expected)
    assert gpu.counters().launches == 11 * (2 + 3) + 8  # 8 + 3 steps, and the text encoder
    assert gpu.counters().live_bytes == 0
    streamed = memory < 1 << 30
    assert (gpu.counters().htod_bytes > 10 << 20) == streamed


@pytest.mark.simulator_matrix
def test_two_bytes_a_number(
    simulate: Simulate, demo_model: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle in 16 bits needs a GPU: its stacks are in 16 bits, convolutions in float32."""
    target = tmp_path / "half.bundle"
    outcome = command(
        "build", *build_flags(demo_model), "--precision", "fp16", "-o", target, "--quiet"
    )
    assert outcome.code == 0, outcome.err
    bundle = ltx2rt.open_bundle(target)
    assert bundle.component("transformer_block").precision == "fp16"
    assert bundle.component("video_decoder").precision == "fp32"
    simulate(memory_bytes=8 << 30)
    use_simulated_cuda(monkeypatch)
    clip = make_clip(target, RuntimeConfig(threads=1))
    assert all(np.isfinite(latent).all() for latent in clip.latents.values())


@pytest.mark.parametrize(
    ("component", "precision", "dtype"),
    [
        ("transformer_block", "bf16", None),
        ("text_tail", "fp16", None),
        ("video_decoder", "bf16", "float32"),
        ("transformer_block", "fp8", "float32"),
        ("transformer_block", "fp32", "float32"),
    ],
)
def test_dtypes_of_builds(component: str, precision: str, dtype: str | None) -> None:
    assert EngineStage(None, Path()).dtype(component, BuildConfig(precision=precision)) == dtype


def test_no_provider(demo_bundle: Path, simulate: Simulate) -> None:
    simulate()
    with (
        ltx2rt.DistilledPipeline(ltx2rt.open_bundle(demo_bundle), ON_GPU) as pipe,
        pytest.raises(ltx2rt.UnsupportedError, match=r"runs on CPUs only; .* onnxruntime-gpu"),
    ):
        pipe(prompt="a bell", height=64, width=64, num_frames=9)


def test_a_provider_that_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would go on with the CPU."""
    model = _relu()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    options = onnxruntime_cuda.on_gpu(OrtOptions(threads=1), 0)
    with pytest.raises(ltx2rt.UnsupportedError, match=r"cannot load here: .*cuDNN"):
        onnxruntime_cuda.open_session(model, "head", {}, options)


def _relu() -> bytes:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
