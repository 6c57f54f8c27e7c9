"""Every shipped memory-bound kernel through our launch, against its reference, at real widths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from ltx2rt_kernels import build, catalog, launch
from ltx2rt_kernels.expressions import evaluate, solve
from ltx2rt_kernels.spec import KernelSpec
from tests.gpu.device import Device, capability
from tests.kernels import test_qk_norm_rope as rope
from tests.kernels import test_rows as rows
from tests.kernels.interpreter import TORCH_DTYPES

CAPABILITY = capability()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CAPABILITY is None, reason="needs an NVIDIA GPU and cuda-bindings"),
]

PACKAGES = ("qk_norm_rope", "adaln_modulate", "gated_residual", "rms_norm_quant")
SHIPPED = {k.name: k for k in catalog.kernels() if k.operator.package in PACKAGES}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device() as opened:
        yield opened


@pytest.mark.parametrize("tokens", [1, 63, 1000])
@pytest.mark.parametrize("name", SHIPPED)
def test_launch_equals_reference(
    device: Device, name: str, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CAPABILITY is not None
    spec = SHIPPED[name]
    arch = next((a for a in launch.ARTIFACTS_FOR.get(CAPABILITY, ()) if a in spec.configs), None)
    if arch is None:
        pytest.skip(f"{name} has no kernel for compute capability {CAPABILITY}")
    list(build.write_artifacts(tmp_path, [spec], [arch]))
    dtype = spec.dtype(spec.operator.inputs[0])
    if spec.operator.package == "qk_norm_rope":
        monkeypatch.setattr(rope, "HEADS", spec.sizes["H"])
        monkeypatch.setattr(rope, "HEAD_DIM", spec.head_dim)
        inputs = rope.make_inputs("split", dtype, (tokens, max(1, tokens // 3)), batch=2)
        rope.check(_run(device, spec, tmp_path, inputs), inputs, dtype)
        return
    monkeypatch.setattr(rows, "WIDTH", spec.sizes["W"])
    inputs = rows.make_inputs(spec.operator, dtype, 2, tokens)
    rows.check(spec.operator, _run(device, spec, tmp_path, inputs), inputs, dtype)


def _run(
    device: Device, spec: KernelSpec, artifacts: Path, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    sizes = dict(spec.sizes)
    for tensor in spec.operator.inputs:
        assert not solve(tensor.shape, tuple(inputs[tensor.name].shape), sizes)
    outputs = {
        t.name: (tuple(evaluate(e, sizes) for e in t.shape), TORCH_DTYPES[spec.dtype(t)])
        for t in spec.operator.outputs
    }
    assert CAPABILITY is not None
    with launch.Kernel(launch.find_artifact(artifacts, spec.name, CAPABILITY)) as kernel:
        return device.run(kernel, inputs, outputs)
