"""The other models on the simulated GPU: the structures of LTX-2 and LTX-2.5, its diffusion
decoder, and `dfr`, on a model with a keyframe embedding; rows as those of `test_matrix`.

The files are those of the golden directory; a row is skipped where it lacks them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.lora.files import Lora
from tests.once import made_once
from tests.parity.command_line import build_flags
from tests.parity.command_line import ltx2rt as command
from tests.parity.demo_loras import write_demo_lora
from tests.parity.golden import Runner, Skip, golden_root
from tests.parity.keyframe_bundle import keyframe_bundle, keyframe_files
from tests.parity.pipeline_source import model_files
from tests.simulator.build import build_engine_bundle
from tests.simulator.driver import simulated
from tests.simulator.fixtures import Simulate
from tests.simulator.tensorrt import make_module
from tests.simulator.test_matrix import LARGE, PARAMS, Row, run_row
from tests.simulator.test_pipelines import kernels

__all__ = ["kernels", "keyframe_bundle"]

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = [pytest.mark.usefixtures("tensorrt_rtx", "kernels"), pytest.mark.simulator_matrix]

#: half of it is two cells: the decoder of LTX-2 mirrors the sides, which one cell cannot
SHAPES = "128x128x9"
DISTILLED = {
    "prompt": "a bell", "seed": 3, "sigmas": (1.0, 0.6, 0.0), "stage_2_sigmas": (0.9, 0.0), **LARGE,
}  # fmt: skip
GUIDED = {
    "prompt": "a bell", "seed": 3, **LARGE,
    "guidance": ltx2rt.GuidanceConfig(num_inference_steps=2, video=PARAMS, audio=PARAMS),
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A generation of the golden directory, with its decoder of convolutions where it has two."""

    generation: str
    has_conv_decoder: bool = True

    def __str__(self) -> str:
        return f"LTX-{self.generation}{'' if self.has_conv_decoder else '-diffusion-decoder'}"

    @property
    def key(self) -> str:
        """Its name, for a folder."""
        return str(self).replace(".", "")


LTX2, LTX25, DIFFUSION = Model("2"), Model("2.5"), Model("2.5", has_conv_decoder=False)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Model, str], tuple[Path, Path]]:
    """A model's bundle of simulated engines, and that for ONNX Runtime."""
    root = golden_root()
    if root is None:
        pytest.skip("no golden directory")
    runner = Runner(root, "torch")

    def make(model: Model, precision: str) -> tuple[Path, Path]:
        try:
            files = model_files(model.generation, runner, conv_decoder=model.has_conv_decoder)
        except Skip as skip:
            pytest.skip(str(skip))

        def reference(folder: Path) -> dict[str, Path]:
            target = folder / "model.bundle"
            outcome = command("build", "--quiet", *build_flags(files), "-o", target)
            assert outcome.code == 0, outcome.err
            return {"bundle": target}

        source = made_once(tmp_path_factory, f"fp32-{model.key}", reference)["bundle"]
        return engines_of(tmp_path_factory, model.key, source, files, precision, SHAPES), source

    return make


def engines_of(
    factory: pytest.TempPathFactory,
    name: str,
    source: Path,
    files: dict[str, Path],
    precision: str,
    shapes: str,
) -> Path:
    def build(folder: Path) -> dict[str, Path]:
        target = folder / f"{precision}.bundle"
        with simulated(), pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx"))
            build_engine_bundle(source, files, target, "--shapes", shapes, precision=precision)
        return {"bundle": target}

    return made_once(factory, f"simulated-{name}-{precision}", build)["bundle"]


def test_dfr(
    simulate: Simulate,
    keyframe_bundle: Path,
    demo_model: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One round: a canvas of keyframes, then a tile at twice the frame rate."""
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    lora = write_demo_lora(tmp_path / "detailing.safetensors", demo_model, 3)
    files = keyframe_files(demo_model, tmp_path)
    shapes = "64x64x49"
    bundle = engines_of(tmp_path_factory, "dfr", keyframe_bundle, files, "bf16", shapes)
    ask = {
        "prompt": "a lake", "seed": 5, "height": 64, "width": 64, "num_frames": 25,
        "images": (ltx2rt.ImageCondition(path=tmp_path / "photo.png"),),
        "temporal_upsample_rounds": 1, "detailing_lora": Lora(path=str(lora), strength=0.5),
    }  # fmt: skip
    run_row(simulate, Row("dfr", "bf16", "resident", graphs=True), bundle, keyframe_bundle, ask)


@pytest.mark.parametrize(
    ("model", "row", "ask"),
    [
        (LTX2, Row("one-stage", "bf16", "resident", graphs=True), GUIDED),
        (LTX2, Row("distilled", "fp8", "streamed", graphs=False), DISTILLED),
        (LTX25, Row("distilled", "fp8", "resident", graphs=True), DISTILLED),
        (LTX25, Row("one-stage", "int8-wo", "streamed", graphs=False), GUIDED),
        (
            DIFFUSION,
            Row("distilled", "bf16", "resident", graphs=False, schedule="random"),
            DISTILLED,
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_other_models(
    simulate: Simulate,
    bundles: Callable[[Model, str], tuple[Path, Path]],
    model: Model,
    row: Row,
    ask: dict[str, Any],
) -> None:
    bundle, reference = bundles(model, row.precision)
    run_row(simulate, row, bundle, reference, ask)
