"""Quantised checkpoints load: every format decodes to exactly the values it stands for.

Every bundle here reuses the graphs of the session's demo bundle: only weights differ.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.errors import BundleError
from ltx2rt.lora.files import Lora
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.inspect import inspect_path
from tests.parity.command_line import (
    SMALL,
    build_flags,
    edited_bundle,
    expect_user_error,
    instead,
    ltx2rt,
    only_components,
    use_graphs_of,
)
from tests.parity.demo_loras import write_demo_lora
from tests.parity.golden import Runner, Skip, golden_root
from tests.parity.quantized_models import (
    GEMMA,
    QUANTIZERS,
    STORAGE,
    WITH_CONNECTORS,
    decoded_twin,
    quantize_file,
)

Model = dict[str, Path]
COMPANIONS = {"weight_scale", "input_scale", "scale_weight", "nf4_shape"}


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
        "generate", bundle, "--prompt", "a lake", "--seed", 3, *instead(*SMALL, "--num-frames", 1),
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
    entry, loader = bundle.component("transformer_block"), Loader(bundle)
    return {
        f"model.diffusion_model.transformer_blocks.{i}.{n}": a.T if n in entry.transposed else a
        for i in entry.served
        for n, a in loader.weights("transformer_block", i, loras).items()
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
    weights = block_weights(open_bundle(build(pair.quantized, tmp_path / "b")))
    assert_same({n: weights[n] for n in pair.decoded}, pair.decoded)


@pytest.mark.parametrize("kind", ["fp8_scaled", "nvfp4", "int8_convrot"])
def test_clips_equal_those_of_the_decoded_model(
    kind: str, pairs: dict[str, Pair], tmp_path: Path, ready_graphs: None
) -> None:
    """A checkpoint of the decoded values in float32 gives the same latents, bit for bit."""
    quantized = build(pairs[kind].quantized, tmp_path / "quantized")
    twin = build(pairs[kind].twin, tmp_path / "twin")
    assert_same(block_weights(open_bundle(quantized)), block_weights(open_bundle(twin)))
    assert_same(
        latents(quantized, tmp_path / "a.safetensors"), latents(twin, tmp_path / "b.safetensors")
    )


def test_reports_name_the_format(pairs: dict[str, Pair]) -> None:
    info = inspect_path(pairs["nvfp4"].quantized["checkpoint"])["storage_format"]
    assert (info["name"], info["layers"], info["static_input_scales"]) == ("nvfp4", 56, 56)
    assert info["buildable"] is True
    text = ltx2rt("inspect", pairs["nf4"].quantized["checkpoint"]).out
    assert "NF4 (musubi-tuner), 56 layers\n" in text


def test_verify_reads_quantised_bundles(
    pairs: dict[str, Pair],
    tmp_path: Path,
    ready_graphs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference and engine decode the same file, each on its own way."""
    bundle = build(pairs["int8_convrot"].quantized, tmp_path / "b")
    only_components(monkeypatch, "transformer_block")
    outcome = ltx2rt("verify", bundle, "--json")
    assert outcome.code == 0, outcome
    assert {r["layer"] for r in outcome.json["rungs"]} == {0, 2}


@pytest.mark.parametrize("kind", ["fp8_scaled", "nf4"])
def test_copied_weights_stay_quantised(
    kind: str, pairs: dict[str, Pair], tmp_path: Path, ready_graphs: None
) -> None:
    pair = pairs[kind]
    bundle = build(pair.quantized, tmp_path / "b", "--copy-weights")
    copy = bundle / "weights" / pair.quantized["checkpoint"].name
    original = SafetensorsFile(pair.quantized["checkpoint"])
    companions = [n for n in original if n.rpartition(".")[2] in COMPANIONS]
    assert set(companions) <= set(SafetensorsFile(copy))
    weights = block_weights(open_bundle(bundle))
    assert_same({n: weights[n] for n in pair.decoded}, pair.decoded)
    assert open_model(copy, pair.quantized["gemma"]).storage_format is not None


def test_loras_fuse_into_decoded_weights(
    pairs: dict[str, Pair], tmp_path: Path, ready_graphs: None
) -> None:
    """At build time, at run time and in a self-contained bundle: the same weights; A -> B -> none
    leaves no trace.
    """
    pair = pairs["nvfp4"]
    files = [write_demo_lora(tmp_path / f"{n}.safetensors", pair.twin, n) for n in (0, 1)]
    loras = tuple(Lora(path=str(f), strength=s) for f, s in zip(files, (0.8, -0.5), strict=True))
    bundle = open_bundle(build(pair.quantized, tmp_path / "plain"))
    plain = block_weights(bundle)
    merged = block_weights(bundle, loras)
    assert all(np.abs(merged[n] - plain[n]).max() > 1e-3 for n in pair.decoded)
    assert_same(block_weights(bundle, loras[:1]), block_weights(bundle, loras[:1]))
    assert_same(block_weights(bundle), plain)
    flags = [x for f, s in zip(files, (0.8, -0.5), strict=True) for x in ("--lora", f"{f}:{s}")]
    fused = open_bundle(build(pair.quantized, tmp_path / "fused", *flags))
    assert_same(block_weights(fused), merged)
    copied = build(pair.quantized, tmp_path / "copied", *flags, "--copy-weights")
    assert_same(block_weights(open_bundle(copied)), merged)
    # what is fused everywhere is plain everywhere: nothing says "quantised" any more
    assert open_model(copied / "weights/nvfp4.safetensors", need=()).storage_format is None


def test_a_quantised_text_encoder_is_decoded(
    demo_model: Model, tmp_path: Path, ready_graphs: None
) -> None:
    gemma = tmp_path / "gemma"
    shutil.copytree(demo_model["gemma"], gemma)
    decoded: dict[str, np.ndarray] = {}
    for shard in sorted(gemma.glob("*.safetensors")):
        decoded |= quantize_file(demo_model["gemma"] / shard.name, shard, "int8_convrot", GEMMA)
    assert len(decoded) == 7 * 6
    bundle = open_bundle(build(demo_model | {"gemma": gemma}, tmp_path / "b"))
    files = MappedFiles()
    loaded = [
        files.load(bundle.entry(name, ref), "float32")
        for entry in bundle.manifest.components.values()
        for layer in entry.layers
        for name, ref in layer.items()
    ]
    for name, values in decoded.items():
        assert any(np.array_equal(got, values) for got in loaded if got.shape == values.shape), name


@pytest.mark.parametrize("kind", ["nvfp4", "int8_convrot"])
def test_split_files_of_ltx25_load(kind: str, tmp_path: Path) -> None:
    """Connectors and a packed text encoder are quantised in Comfy's files."""
    try:
        runner = Runner(golden_root() or Path("absent"), "torch")
        transformer = runner.checkpoint("ltx-2.5-tiny-dev-transformer-bf16.safetensors")
        packed = runner.checkpoint("gemma4-tiny-with-proj-ltx-2.5-bf16.safetensors")
    except Skip as reason:
        pytest.skip(str(reason))
    paths = tmp_path / "transformer.safetensors", tmp_path / "text.safetensors"
    decoded = quantize_file(transformer, paths[0], kind, WITH_CONNECTORS)
    assert any("transformer_1d_blocks" in name for name in decoded)
    decoded |= quantize_file(packed, paths[1], "int8", GEMMA)
    need = ("transformer", "connectors", "text_projection", "gemma")
    model = open_model(paths[0], text_encoder=paths[1], need=need)
    entries = {
        e.name: e
        for role in ("transformer", "connectors", "gemma")
        for e in model.tensors(role).values()
    }
    maps = MappedFiles()
    assert_same({n: maps.load(entries[n], "float32") for n in decoded}, decoded)


def broken(model: Model, target: Path, kind: str, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A quantised checkpoint whose tensors `edit` changed."""
    source = target.with_name("whole.safetensors")
    quantize_file(model["checkpoint"], source, kind)
    file, maps = SafetensorsFile(source), MappedFiles()
    tensors: dict[str, Any] = {
        n: (e.dtype, e.shape, (maps.raw(e).tobytes(),)) for n, e in file.items()
    }
    edit(tensors)
    write_safetensors(target, tensors, file.metadata)
    return target


Q = "model.diffusion_model.transformer_blocks.1.attn1.to_q"
K = "model.diffusion_model.transformer_blocks.2.attn1.to_k"


def test_all_broken_companions_are_listed(demo_model: Model, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        del tensors[f"{Q}.weight_scale_2"]
        tensors[f"{K}.weight_scale"] = "float8_e4m3fn", (4, 4), (bytes(16),)

    path = broken(demo_model, tmp_path / "bad.safetensors", "nvfp4", edit)
    outcome = ltx2rt("build", *build_flags(demo_model | {"checkpoint": path}), "-o", tmp_path / "b")
    expect_user_error(
        outcome, "bad.safetensors cannot be decoded", "2 problems", "1.attn1.to_q.weight",
        "it has no tensor scale (weight_scale_2)",
        "2.attn1.to_k.weight: its scale (weight_scale) is float8_e4m3fn [4, 4]",
        "expected float8_e4m3fn [128, 4]",
    )  # fmt: skip
    assert "cannot be decoded" in ltx2rt("inspect", path).out


BREAKS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "no scale": ("fp8_scaled", lambda t: t.pop(f"{Q}.weight_scale"), "it has no scale, other FP8"),
    "scale of another shape": (
        "fp8_scaled",
        lambda t: t.update({f"{Q}.weight_scale": np.zeros(3, np.float32)}),
        "its scale (weight_scale) is float32 [3]",
    ),
    "scale of another dtype": (
        "int8",
        lambda t: t.update({f"{Q}.weight_scale": np.zeros((64, 1), np.int32)}),
        "its scale (weight_scale) is int32",
    ),
    "nf4 shape": (
        "nf4",
        lambda t: t.update({f"{Q}.nf4_shape": np.array([64, 32])}),
        "its nf4_shape is [64, 32], the codes hold [64, 64]",
    ),
    "not JSON": (
        "int8_convrot",
        lambda t: t.update({f"{Q}.comfy_quant": np.full(9, 255, np.uint8)}),
        "its comfy_quant is not JSON",
    ),
    "rotation": (
        "int8_convrot",
        lambda t: t.update({f"{Q}.comfy_quant": comfy(convrot=True, convrot_groupsize=32)}),
        "a rotation of 32 inputs does not exist",
    ),
    "group of zero": (
        "int8_convrot",
        lambda t: t.update({f"{Q}.comfy_quant": comfy(convrot=True, convrot_groupsize="a")}),
        "64 inputs have no whole groups of 0",
    ),
    "another format": (
        "int8",
        lambda t: t.update({f"{Q}.comfy_quant": comfy(format="asym_w4a8_int8")}),
        "1 layers as an unknown 8-bit or 4-bit format (unknown), which is not read",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_quantisation_is_refused(name: str, demo_model: Model, tmp_path: Path) -> None:
    kind, edit, message = BREAKS[name]
    path = broken(demo_model, tmp_path / "bad.safetensors", kind, edit)
    outcome = ltx2rt("build", *build_flags(demo_model | {"checkpoint": path}), "-o", tmp_path / "b")
    expect_user_error(outcome, message)


def comfy(**values: object) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def test_a_manifest_that_cannot_be_decoded_is_refused(
    pairs: dict[str, Pair], tmp_path: Path, ready_graphs: None
) -> None:
    bundle = build(pairs["nvfp4"].quantized, tmp_path / "b")

    def edit(manifest: dict[str, Any]) -> None:
        layer = manifest["components"]["transformer_block"]["layers"][1]
        names = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k")
        refs = [layer[f"{name}.weight"]["encoding"] for name in names]
        refs[0]["format"] = "fp3"
        refs[1]["parts"].pop("tensor_scale")
        refs[2]["parts"]["scale"]["offset"] = 10**15
        refs[3]["shape"] = [64, 1]
        refs[4]["group"] = 0

    bad = edited_bundle(bundle, tmp_path / "bad", edit)
    with pytest.raises(BundleError) as error:
        open_bundle(bad)
    for part in (
        "attn1.to_q.weight cannot be decoded: its format 'fp3' is unknown",
        "attn1.to_k.weight cannot be decoded: it has no tensor scale",
        "attn1.to_v.weight (scale) lies outside",
        "attn2.to_q.weight of dtype 'uint8' and shape [64, 1] has 2048 bytes",
        "attn2.to_k.weight cannot be decoded: 64 inputs have no whole groups of 0",
    ):
        assert part in str(error.value)
    with pytest.raises(BundleError, match=r"encoding has an unknown option 'x'"):
        open_bundle(edited_bundle(bundle, tmp_path / "x", lambda m: add_unknown(m)))


def add_unknown(manifest: dict[str, Any]) -> None:
    layer = manifest["components"]["transformer_block"]["layers"][1]
    layer["attn1.to_q.weight"]["encoding"]["x"] = 1
