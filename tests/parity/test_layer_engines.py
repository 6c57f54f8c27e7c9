"""How ONNX Runtime on a CPU holds weights of layers: inside a session (`--weights constant`, some
precisions), or as inputs in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from ltx2rt.backends.onnxruntime import OrtEngine
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import UNMASKED
from ltx2rt.bundle.memory import layer_bytes
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array, Engine, TensorSpec
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
    """Two blocks in 8 bits and one in 16."""
    target = tmp_path_factory.mktemp("int8") / "b"
    return build(target, demo_model, "--precision", "int8", "--plain-layers", "1")


def test_sessions_of_blocks_keep_no_memory_between_runs(demo_bundle: Path) -> None:
    """Pieces that grow by doubling took half as much again as what is alive at once."""
    loader = Loader(open_bundle(demo_bundle))

    def keeps(engine: Engine) -> bool:
        with engine:
            assert isinstance(engine, OrtEngine)
            return bool(engine._session.get_session_options().enable_cpu_mem_arena)

    for name in (TRANSFORMER_BLOCK, TRANSFORMER_BLOCK + UNMASKED):
        assert not keeps(loader.layer_engine(name, 0, RUNTIME))
    assert keeps(loader.engine(TRANSFORMER_STACK.tail, RUNTIME))


STACK = ",".join(n for n in TRANSFORMER_STACK.components if n != TRANSFORMER_BLOCK_PLAIN)


def feeds_of(bundle: Bundle, name: str) -> dict[str, Array]:
    """Random inputs of a block."""
    rng = np.random.default_rng(0)

    def feed(spec: TensorSpec) -> Array:
        shape = [SIZES.get(str(d).removeprefix("1|"), d) for d in spec.shape]
        if spec.dtype == "int64":
            return np.zeros(shape, np.int64)
        return rng.standard_normal(shape).astype(np.float32)

    return {spec.name: feed(spec) for spec in bundle.component(name).spec(name).inputs}


def run_layer(bundle: Bundle, name: str, layer: int) -> dict[str, Array]:
    loader, block = Loader(bundle), name.removesuffix(UNMASKED)
    inside = bundle.component(name).weight_binding == "layer"
    weights = {} if inside else loader.weights(block, layer)
    with loader.layer_engine(name, layer, RUNTIME) as engine:
        return engine({**feeds_of(bundle, name), **weights})


@pytest.mark.parametrize(
    "flags", [("--weights", "constant"), ("--precision", "bf16-wo")], ids=["inside", "16 bits"]
)
def test_the_numbers_are_those_of_float32(
    flags: tuple[str, ...], demo_model: dict[str, Path], demo_bundle: Path, tmp_path: Path
) -> None:
    plain = open_bundle(demo_bundle)
    made = build(tmp_path / "b", demo_model, *flags, "--components", STACK)
    entry, inside = made.component(TRANSFORMER_BLOCK), flags[0] == "--weights"
    assert entry.weight_binding == ("layer" if inside else "input")
    for name in (TRANSFORMER_BLOCK, TRANSFORMER_BLOCK + UNMASKED):
        for layer in (0, 2):
            want, got = run_layer(plain, name, layer), run_layer(made, name, layer)
            for output, array in want.items():
                assert np.isfinite(array).all()
                np.testing.assert_allclose(got[output], array, rtol=1e-5, atol=1e-5)
    held = layer_bytes(entry)[0] / layer_bytes(plain.component(TRANSFORMER_BLOCK))[0]
    assert held == 1 if inside else 0.5 < held < 0.6
    target = tmp_path / "block.onnx"  # other tools get them as they get those of other bundles
    outcome = ltx2rt("graph", made.folder, TRANSFORMER_BLOCK, "-o", target, "--weights")
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
    assert int8.component(TRANSFORMER_BLOCK_PLAIN).precision == "bf16-wo"
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
