"""Engines of the demo model on the GPU of this machine, through the command line: every component
against PyTorch, a clip against ONNX Runtime, and the ways in which weights reach the device.

Not run yet: written for the first GPU with TensorRT or TensorRT-RTX.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.tensorrt_api import APIS, installed_version, load
from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.targets import target_problems
from ltx2rt.device.cuda import local_gpu
from ltx2rt.errors import UnsupportedError
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.distilled import DistilledPipeline
from tests.parity.command_line import build_flags, ltx2rt
from tests.parity.demo_loras import write_demo_lora

#: relative RMS of latents against float32 on a CPU: TF32 or 16-bit rounding through two stages
BOUNDS = {"fp32": 1e-2, "bf16": 0.1}
CLIP = {"prompt": "a bell", "height": 64, "width": 64, "num_frames": 9, "seed": 3}


def reason_to_skip(backend: str) -> str | None:
    """Why engines of this backend cannot run here; None if they can."""
    if installed_version(backend) is None:
        return f"{APIS[backend].label} is not installed"
    try:
        load(backend)
        gpu = local_gpu("this test")
    except UnsupportedError as error:
        return str(error)
    problems = target_problems(backend, (gpu.target,))
    return problems[0] if problems else None


pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=APIS)
def backend(request: pytest.FixtureRequest) -> str:
    if reason := reason_to_skip(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def builds(
    backend: str, demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A bundle of the demo model in each way; the engines are for this GPU."""
    folder = tmp_path_factory.mktemp(backend)
    target = () if not APIS[backend].names_targets else ("--target", local_gpu("").target)
    ways = {
        "fp32": ("--precision", "fp32"),
        "bf16": ("--precision", "bf16"),
        "constant": ("--precision", "bf16", "--weights", "constant"),
    }
    bundles = {}
    for way, flags in ways.items():
        bundles[way] = folder / f"{way}.bundle"
        outcome = ltx2rt(
            "build", *build_flags(demo_model), "--backend", backend, *target, *flags,
            "--shapes", "64x64x9", "--cache-dir", folder / "cache", "-o", bundles[way],
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
    return bundles


def latents(bundle: Path, loras: tuple[Lora, ...] = ()) -> dict[str, np.ndarray]:
    with DistilledPipeline(open_bundle(bundle)) as pipe:
        return pipe(**CLIP, loras=loras).latents


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest relative RMS difference of all latents."""
    assert found.keys() == expected.keys()
    return max(
        float(np.sqrt(np.mean((found[n] - e) ** 2) / np.mean(e**2))) for n, e in expected.items()
    )


@pytest.mark.parametrize("way", ["fp32", "bf16", "constant"])
def test_every_component_agrees_with_pytorch(builds: dict[str, Path], way: str) -> None:
    outcome = ltx2rt("verify", builds[way], "--json")
    failed = [r for r in outcome.json["rungs"] if not r["passed"]]
    assert outcome.json["rungs"]
    assert not failed


def test_a_clip_agrees_with_onnx_runtime(builds: dict[str, Path], demo_bundle: Path) -> None:
    expected = latents(demo_bundle)
    for precision, bound in BOUNDS.items():
        assert difference(latents(builds[precision]), expected) < bound, precision
    assert difference(latents(builds["constant"]), expected) < BOUNDS["bf16"]


def test_weights_without_room_change_nothing(
    builds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = latents(builds["bf16"])
    monkeypatch.setattr(DeviceMemory, "has_room", lambda *_: False)
    streamed = latents(builds["bf16"])
    for name, latent in resident.items():
        np.testing.assert_array_equal(streamed[name], latent, err_msg=name)


def test_loras_come_and_go_without_trace(
    builds: dict[str, Path], demo_model: dict[str, Path], tmp_path: Path
) -> None:
    lora = Lora(path=str(write_demo_lora(tmp_path / "l.safetensors", demo_model, 0)), strength=1.0)
    with DistilledPipeline(open_bundle(builds["bf16"])) as pipe:
        first, adapted, again = (
            pipe(**CLIP, loras=loras).video_latent for loras in ((), (lora,), ())
        )
    np.testing.assert_array_equal(first, again)
    assert np.abs(adapted - first).max() > 0
