"""`--weights constant`: engines that hold their weights, of which the transformer block has one a
layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.bundle.loader import Loader
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import BundleError, UnsupportedError
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER_BLOCK_PLAIN
from ltx2rt_export.engines.stage import StoredWeights
from tests.parity.command_line import build_flags, edited_bundle, expect_user_error, ltx2rt
from tests.parity.demo_loras import write_demo_lora

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

FLAGS = (
    "--backend", "tensorrt-rtx", "--precision", "fp8", "--target", "sm89", "--shapes", "64x64x9",
    "--weights", "constant", "--plain-layers", "1",
)  # fmt: skip
PARTS = "text_block,transformer_block,transformer_tail"


@pytest.fixture(scope="module")
def bundle(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks in FP8 and one in 16 bits, built in earnest; read-only."""
    path = tmp_path_factory.mktemp("constant") / "constant.bundle"
    outcome = ltx2rt(
        "build", *build_flags(demo_model), *FLAGS, "--components", PARTS,
        "--cache-dir", path.parent / "cache", "-o", path, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "build transformer_block 2: 1/1" in outcome.err
    return path


@pytest.mark.slow
def test_every_layer_of_the_block_has_an_engine(bundle: Path) -> None:
    opened = open_bundle(bundle)
    files = {n: [e.file for e in c.engines] for n, c in opened.manifest.components.items()}
    stem = "engines/{}/tensorrt-rtx-sm89-{}{}.engine"
    assert files == {
        "transformer_block": [
            stem.format("transformer_block", "fp8", "-layer00"),
            stem.format("transformer_block", "fp8", "-layer02"),
        ],
        TRANSFORMER_BLOCK_PLAIN: [stem.format(TRANSFORMER_BLOCK_PLAIN, "bf16", "-layer01")],
        "transformer_tail": [stem.format("transformer_tail", "bf16", "")],
        "text_block": [stem.format("text_block", "bf16", "")],
    }
    found = {f: read_info(bundle / f) for names in files.values() for f in names}
    text = files["text_block"][0]
    assert {f for f, info in found.items() if info.weight_inputs} == {text}
    assert {f for f, info in found.items() if info.weights == "constant"} == found.keys() - {text}
    blocks = [found[f] for f in files["transformer_block"]]
    assert blocks[0].graph_sha256 != blocks[1].graph_sha256  # other weights, another engine
    assert opened.component("transformer_block").served == (0, 2)
    assert opened.component(TRANSFORMER_BLOCK_PLAIN).served == (1,)
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU"):
        Loader(opened).layer_engine("transformer_block", 2, RuntimeConfig())


@pytest.mark.slow
def test_what_is_inside_is_what_would_be_bound(bundle: Path) -> None:
    opened = open_bundle(bundle)
    sources = [bundle / s.path for s in opened.manifest.sources]
    loader = Loader(opened)
    for name, layer in (("transformer_block", 2), (TRANSFORMER_BLOCK_PLAIN, 1)):
        stored = StoredWeights(opened.component(name), sources, layer)
        bound = loader.weights(name, layer)
        assert set(stored) == set(bound)
        for weight, array in bound.items():
            np.testing.assert_array_equal(stored[weight], array)


@pytest.mark.slow
def test_loras_and_missing_layers_are_refused(
    bundle: Path, demo_model: dict[str, Path], tmp_path: Path
) -> None:
    path = write_demo_lora(tmp_path / "lora.safetensors", demo_model, 0)
    with pytest.raises(UnsupportedError, match=r"engine of transformer_block.*--weights input"):
        Loader(open_bundle(bundle))._device_engine(
            "transformer_block", RuntimeConfig(), [Lora(path=str(path), strength=1.0)], 0
        )

    def without_one(manifest: dict) -> None:
        manifest["components"]["transformer_block"]["engines"].pop()

    with pytest.raises(BundleError, match="transformer_block has 1 engines, expected 2"):
        open_bundle(edited_bundle(bundle, tmp_path / "short.bundle", without_one))


def test_plans_and_options(demo_model: dict[str, Path], tmp_path: Path) -> None:
    build = ("build", *build_flags(demo_model), *FLAGS)
    report = ltx2rt(*build, "--components", PARTS, "--dry-run", "--json").json["components"]
    assert {n: (c["weights"], c["layers"]) for n, c in report.items()} == {
        "text_block": ("input", 6),
        "transformer_block": ("constant", 2),
        TRANSFORMER_BLOCK_PLAIN: ("constant", 1),
        "transformer_tail": ("constant", 1),
    }
    block = report["transformer_block"]
    assert block["engine_bytes"] > block["weight_bytes"] > 0
    outcome = ltx2rt(*build, "--lora-inputs", "-o", tmp_path / "b")
    expect_user_error(outcome, "lora_inputs needs weights='input'")
