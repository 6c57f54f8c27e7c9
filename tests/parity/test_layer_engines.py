"""ONNX Runtime with weights inside: `--weights constant`, and 8-bit arithmetic, which wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import UnsupportedError
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER_BLOCK, TRANSFORMER_BLOCK_PLAIN, TRANSFORMER_STACK
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt_export.bundle import inputs_in, open_inputs
from ltx2rt_export.modules.transformer import transformer_block
from ltx2rt_export.verify import verify_bundle
from tests.parity.command_line import build_flags, ltx2rt
from tests.parity.demo_loras import write_demo_lora
from tests.tolerances import INT8_DEMO_LATENT_REL_L2

RUNTIME = RuntimeConfig(threads=1)
CLIP = GenerationConfig(
    prompt="A quiet lake.", seed=3, height=64, width=64, num_frames=9, tiling="none"
)
SIZES = {"B": 2, "Tv": 6, "Ta": 5, "Uv": 2, "Ua": 3, "S": 8}


def build(target: Path, model: Mapping[str, Path], *flags: str) -> Bundle:
    outcome = ltx2rt("build", *build_flags(dict(model)), *flags, "-o", target)
    assert outcome.code == 0, outcome.err
    return open_bundle(target)


@pytest.fixture(scope="module")
def int8(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two blocks in 8 bits and one in float32."""
    target = tmp_path_factory.mktemp("int8") / "b"
    return build(target, demo_model, "--precision", "int8", "--plain-layers", "1")


def test_inside_or_bound_the_numbers_are_the_same(
    demo_model: dict[str, Path], demo_bundle: Path, tmp_path: Path
) -> None:
    names = ",".join(n for n in TRANSFORMER_STACK.components if n != TRANSFORMER_BLOCK_PLAIN)
    inside = build(tmp_path / "b", demo_model, "--weights", "constant", "--components", names)
    bound, rng = open_bundle(demo_bundle), np.random.default_rng(0)
    assert inside.component(TRANSFORMER_BLOCK).weight_binding == "layer"
    for name in (TRANSFORMER_BLOCK, f"{TRANSFORMER_BLOCK}_unmasked"):
        feeds = {
            spec.name: np.zeros([SIZES.get(str(d).split("|")[-1], d) for d in spec.shape], np.int64)
            if spec.dtype == "int64"
            else rng.standard_normal(
                [SIZES.get(str(d).split("|")[-1], d) for d in spec.shape]
            ).astype(np.float32)
            for spec in bound.component(name).spec(name).inputs
        }
        for layer in (0, 2):
            with Loader(bound).layer_engine(name, layer, RUNTIME) as engine:
                want = engine({**feeds, **Loader(bound).weights(TRANSFORMER_BLOCK, layer)})
            with Loader(inside).layer_engine(name, layer, RUNTIME) as engine:
                got = engine(feeds)
            assert all(np.isfinite(a).all() for a in want.values())
            for output, array in want.items():
                np.testing.assert_allclose(got[output], array, rtol=1e-5, atol=1e-5)
    target = tmp_path / "block.onnx"  # other tools get them as they get those of other bundles
    outcome = ltx2rt("graph", inside.folder, TRANSFORMER_BLOCK, "-o", target, "--weights")
    assert outcome.code == 0, outcome.err
    onnx.checker.check_model(str(target))


def latents(bundle: Bundle, *loras: Lora) -> list[Array]:
    with DistilledPipeline(bundle, RUNTIME) as pipe:
        clip = pipe(replace(CLIP, loras=loras))
        return [clip.video_latent, clip.audio_latent]


def test_a_clip_in_8_bits_with_a_lora_and_without(
    int8: Bundle, demo_bundle: Path, demo_model: dict[str, Path], tmp_path: Path
) -> None:
    assert int8.component(TRANSFORMER_BLOCK).served == (0, 2)
    assert int8.component(TRANSFORMER_BLOCK_PLAIN).precision == "fp32"
    path = write_demo_lora(tmp_path / "lora.safetensors", demo_model, 1)
    lora = Lora(path=str(path), strength=0.5)
    for loras in ((), (lora,)):
        for got, want in zip(
            latents(int8, *loras), latents(open_bundle(demo_bundle), *loras), strict=True
        ):
            lost = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert 1e-4 < lost < INT8_DEMO_LATENT_REL_L2


def test_verify_passes(int8: Bundle) -> None:
    files = open_inputs(inputs_in(int8.manifest.build, int8.folder))
    block = transformer_block(files.config("transformer"), files.tensors("transformer"))
    rungs = list(verify_bundle(int8, [block], runtime=RUNTIME))
    assert {r.layer for r in rungs} == {0, 1, 2}
    assert all(r.passed for r in rungs)


def test_it_does_not_run_on_a_gpu(int8: Bundle) -> None:
    with pytest.raises(UnsupportedError, match=r"\(int8, one session a layer\) runs on a CPU only"):
        Loader(int8).stack(TRANSFORMER_STACK, RuntimeConfig(device=0))
