"""Quantised checkpoints load: every format decodes to exactly the values it stands for.

Every bundle here reuses the graphs of the session's demo bundle: only weights differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle import Bundle, open_bundle
from ltx2rt.manifest import Lora
from ltx2rt.safetensors import MappedFiles, SafetensorsFile
from ltx2rt_export.checkpoint import open_model
from tests.parity.command_line import (
    SMALL,
    build_flags,
    ltx2rt,
    use_graphs_of,
)
from tests.parity.quantized_models import (
    QUANTIZERS,
    STORAGE,
    decoded_twin,
    quantize_file,
)

Model = dict[str, Path]


@dataclass(frozen=True)
class Pair:
    """A quantised model, what it decodes to, and a float32 model of those values."""

    quantized: Model
    twin: Model
    decoded: dict[str, np.ndarray]


@pytest.fixture
def ready_graphs(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_graphs_of(demo_bundle, monkeypatch)


@pytest.fixture(scope="module")
def pairs(demo_model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """One model a format, without those that a test makes itself."""
    folder = tmp_path_factory.mktemp("quantized")
    return {kind: make_pair(demo_model, folder / kind, kind) for kind in QUANTIZERS}


def make_pair(model: Model, folder: Path, kind: str) -> Pair:
    (folder / "twin").mkdir(parents=True)
    source = model["checkpoint"]
    path = folder / f"{kind}.safetensors"
    decoded = quantize_file(source, path, kind)
    twin = decoded_twin(source, folder / "twin" / path.name, decoded)
    return Pair(model | {"checkpoint": path}, model | {"checkpoint": twin}, decoded)


def build(model: Model, target: Path, *flags: object) -> Path:
    outcome = ltx2rt("build", "--quiet", *build_flags(model), *flags, "-o", target)
    assert outcome.code == 0, outcome.err
    return target


def latents(bundle: Path, target: Path, *flags: object) -> dict[str, np.ndarray]:
    """Generate a clip and read the latents that it saved."""
    outcome = ltx2rt(
        "generate", bundle, "--prompt", "a lake", "--seed", 3, *SMALL, "--num-frames", 1,
        "--quiet", "--save-latents", target, "-o", target.with_suffix(".mp4"), *flags,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    file, maps = SafetensorsFile(target), MappedFiles()
    return {name: maps.load(entry, "float32").copy() for name, entry in file.items()}


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def block_weights(bundle: Bundle, loras: tuple[Lora, ...] = ()) -> dict[str, np.ndarray]:
    """Official tensor name -> the weight `[out, in]` as it is bound."""
    transposed = bundle.component("transformer_block").transposed
    return {
        f"model.diffusion_model.transformer_blocks.{i}.{n}": a.T if n in transposed else a
        for i, layer in enumerate(bundle.layers("transformer_block", loras))
        for n, a in layer.items()
    }


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_weights_are_the_decoded_values(
    kind: str, pairs: dict[str, Pair], tmp_path: Path, ready_graphs: None
) -> None:
    pair = pairs[kind]
    stored = open_model(**pair.quantized).storage_format
    assert stored is not None
    linears = sum(name.endswith(".weight") for name in pair.decoded)
    assert (stored.name, stored.layers) == (STORAGE.get(kind, kind), linears)
    assert linears == 28 * 2  # one of the demo's three blocks stays bfloat16
    bundle = build(pair.quantized, tmp_path / "b")
    weights = block_weights(open_bundle(bundle))
    plain = block_weights(open_bundle(build(pair.twin, tmp_path / "twin")))
    assert_same(weights, plain)
    assert_same({n: weights[n] for n in pair.decoded}, pair.decoded)
    assert_same(
        latents(bundle, tmp_path / "a.safetensors"),
        latents(tmp_path / "twin", tmp_path / "b.safetensors"),
    )
