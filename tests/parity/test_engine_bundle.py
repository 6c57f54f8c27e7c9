"""Bundles with TensorRT-RTX engines, through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import ltx2rt.bundle.checks as checks_module
from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import BundleError, UnsupportedError
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER_STACK
from ltx2rt.progress import Job
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export import bundle as export_bundle
from ltx2rt_export.catalog import traced_components
from ltx2rt_export.component import Component
from ltx2rt_export.engines.stage import StoredWeights
from ltx2rt_export.engines.weights import fold_transposes
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.modules.vocoder import vocoder
from ltx2rt_export.onnx import export_component
from tests.parity.audio_models import BWE
from tests.parity.command_line import (
    build_flags,
    edited_bundle,
    expect_user_error,
    instead,
    ltx2rt,
    unchanged,
)
from tests.parity.demo_loras import write_demo_lora
from tests.parity.engine_models import builder
from tests.parity.exports import exported_in
from tests.parity.test_audio_vae import tiny_vocoder

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

#: all of the demo model but its vocoder, whose 200 activations take half a minute to build
COMPONENTS = (
    "text_head",
    "text_block",
    "text_tail",
    "transformer_head",
    "transformer_block",
    "transformer_tail",
    "video_encoder",
    "video_decoder",
    "audio_encoder",
    "audio_decoder",
    "spatial_upsampler",
)
RTX = ("--backend", "tensorrt-rtx", "--precision", "bf16", "--shapes", "64x64x9")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def rtx_bundle(
    demo_model: dict[str, Path], cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Built in earnest, once; read-only."""
    bundle = tmp_path_factory.mktemp("rtx") / "rtx.bundle"
    outcome = ltx2rt(
        "build", *build_flags(demo_model), *RTX, "--components", ",".join(COMPONENTS),
        "--cache-dir", cache_dir, "-o", bundle, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert set(outcome.json["engines"]) == {
        f"engines/{name}/tensorrt-rtx-sm89-sm120-bf16.engine" for name in COMPONENTS
    }
    for name in COMPONENTS:
        assert f"build {name}: 1/1" in outcome.err
    return bundle


@pytest.mark.slow
def test_every_component_builds_opens_and_inspects(rtx_bundle: Path) -> None:
    bundle = open_bundle(rtx_bundle)
    assert set(bundle.manifest.components) == set(COMPONENTS)
    assert [p.name for p in rtx_bundle.parent.iterdir()] == ["rtx.bundle"]  # no lock is left
    for name, entry in bundle.manifest.components.items():
        (engine,) = entry.engines
        assert engine.targets == ("sm89", "sm120")
        info = read_info(rtx_bundle / engine.file)
        assert info.engine_sha256 == engine.sha256
        assert info.buckets == engine.buckets
        assert [t.name for t in info.inputs] == [t.name for t in entry.inputs]
        # every weight that the engine takes is one that the loader gives, in its layout
        for weight in info.weight_inputs:
            ref = entry.layers[0][weight.name]
            shape = ref.shape[::-1] if weight.name in entry.transposed else ref.shape
            own = weight.shape[-len(shape) :] if len(shape) == 1 else weight.shape
            assert own == shape, (name, weight.name)  # biases have more axes there, of one element
        report = ltx2rt("inspect", rtx_bundle / engine.file, "--json").json
        assert report["kernels"]["known"]
        assert report["component"] == name
    text = ltx2rt("inspect", rtx_bundle).out
    assert "tensorrt-rtx 1." in text
    assert "      32x32x9: B 1, S 1024" in text
    assert "--backend tensorrt-rtx --precision bf16 --shapes 64x64x9 --components" in text


@pytest.mark.slow
def test_a_second_build_is_instant(
    rtx_bundle: Path,
    demo_model: dict[str, Path],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is built again, and nothing is traced: neither shipped graphs nor, where there are
    none, those that a build kept; a damaged one is.
    """
    traced: list[str] = []

    def export(component: Component, dtype: str) -> ExportedGraph:
        traced.append(component.name)
        return export_component(component, dtype)

    monkeypatch.setattr("ltx2rt_export.onnx.export_component", export)
    target = tmp_path / "again.bundle"
    command = (
        "build", *build_flags(demo_model), *RTX, "--cache-dir", cache_dir, "-o", target, "--quiet",
    )  # fmt: skip
    everything = ("--components", ",".join(COMPONENTS))
    assert ltx2rt(*command, *everything).code == 0
    assert traced == []
    assert read_manifest(target) == read_manifest(rtx_bundle)
    monkeypatch.setattr(export_bundle, "components_of", traced_components)
    part = (*command, "--components", "transformer_tail", "--force")
    for count in (1, 1):
        assert ltx2rt(*part).code == 0
        assert len(traced) == count
    kept = next((cache_dir / "engines").glob("*.onnx"))
    kept.write_bytes(kept.read_bytes()[:-1])
    assert ltx2rt(*part).code == 0
    assert len(traced) == 2
    shipped, made = (read_manifest(b).components["transformer_tail"] for b in (rtx_bundle, target))
    assert (made.graph_sha256, made.engines) == (shipped.graph_sha256, shipped.engines)


@pytest.mark.slow
def test_weights_are_loaded_as_engines_take_them(rtx_bundle: Path) -> None:
    bundle = open_bundle(rtx_bundle)
    entry = bundle.component("transformer_block")
    info = read_info(rtx_bundle / entry.engines[0].file)
    loader = Loader(bundle)
    for layer in (loader.weights("transformer_block", i) for i in entry.served):
        found = {
            w.name: (layer[w.name].shape, layer[w.name].dtype.name) for w in info.weight_inputs
        }
        wanted = {  # biases have more axes there, of one element
            w.name: (w.shape[2:] if w.shape[:2] == (1, 1) else w.shape, "uint16")
            for w in info.weight_inputs
        }
        assert found == wanted
    # what goes inside an engine with constants is what the runtime would bind
    sources = [rtx_bundle / s.path for s in bundle.manifest.sources]
    for name in ("transformer_tail", "audio_decoder"):
        stored = StoredWeights(bundle.component(name), sources)
        bound = loader.weights(name)
        assert set(stored) == set(bound)
        for weight, array in bound.items():
            np.testing.assert_array_equal(stored[weight], array)


@pytest.mark.slow
def test_a_machine_without_a_gpu_says_so(rtx_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(rtx_bundle)
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU"):
        Loader(bundle).engine("transformer_tail", RuntimeConfig())
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU"):
        Loader(bundle).stack(TRANSFORMER_STACK, RuntimeConfig())


@pytest.mark.slow
def test_loras_do_not_fit_weights_that_are_constants(
    rtx_bundle: Path, demo_model: dict[str, Path], tmp_path: Path
) -> None:
    def constants(manifest: dict) -> None:
        manifest["components"]["transformer_tail"]["engines"][0]["weights"] = "constant"

    bundle = open_bundle(edited_bundle(rtx_bundle, tmp_path / "constant.bundle", constants))
    path = write_demo_lora(tmp_path / "lora.safetensors", demo_model, 0)
    lora = Lora(path=str(path), strength=1.0)
    with pytest.raises(UnsupportedError, match=r"holds its weights as constants.*--weights input"):
        Loader(bundle)._device_engine("transformer_tail", RuntimeConfig(), [lora], 0)


@pytest.mark.slow
def test_changed_engines_and_other_versions_are_refused(
    rtx_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.bundle"
    shutil.copytree(rtx_bundle, broken)
    engine = next(broken.glob("engines/transformer_tail/*.engine"))
    engine.write_bytes(engine.read_bytes()[:-1])
    next(broken.glob("engines/transformer_head/*.engine")).unlink()
    next(broken.glob("engines/text_head/*.json")).unlink()
    shutil.copy(
        next(broken.glob("engines/text_tail/*.json")),
        next(broken.glob("engines/text_block/*.json")),
    )
    with pytest.raises(BundleError) as error:
        open_bundle(broken)
    assert "engine.json beside it: copy both" in str(error.value)
    assert "engine.json is of another engine" in str(error.value)
    assert "engine of transformer_tail" in str(error.value)
    assert "engine of transformer_head" in str(error.value)
    assert "--backend tensorrt-rtx --precision bf16" in str(error.value)

    def other_backend(manifest: dict) -> None:
        manifest["components"]["transformer_tail"]["engines"][0]["backend"] = "tensorrt"
        manifest["components"]["transformer_head"]["engines"] = []

    with pytest.raises(BundleError, match="for backend 'tensorrt', the bundle for 'tensorrt-rtx'"):
        open_bundle(edited_bundle(rtx_bundle, tmp_path / "other.bundle", other_backend))
    monkeypatch.setattr(checks_module, "installed_version", lambda backend: "1.6.0.1")
    with pytest.raises(BundleError, match=r"1\.6\.0\.1 is installed"):
        open_bundle(rtx_bundle)
    monkeypatch.setattr(checks_module, "installed_version", lambda backend: None)
    assert open_bundle(rtx_bundle).manifest == read_manifest(rtx_bundle)


def test_vocoder_and_its_local_functions_build_in_float32(cache_dir: Path, tmp_path: Path) -> None:
    part = vocoder(BWE, tiny_vocoder(tmp_path / "v.safetensors", BWE))
    graph = fold_transposes(exported_in(part, "bf16"))
    assert graph.dtype == "float32"
    assert graph.model.functions  # the activation is a function, which RTX inlines
    made = builder(
        cache_dir,
        "64x64x9",
        precision="bf16",
        options={"audio_decoder": {"mel_frames_per_latent": 4}},
    )
    entry = made.build(graph, "fp32", None, tmp_path, Job())
    assert entry.buckets[0].sizes["M"] == (1, 36, 76)


def test_dry_run_builds_nothing(demo_model: dict[str, Path], tmp_path: Path) -> None:
    with unchanged(tmp_path):
        command = ("build", *build_flags(demo_model), *RTX, "--dry-run", "--cache-dir", tmp_path)
        outcome = ltx2rt(*command, "--components", "transformer_block,video_decoder", "--json")
        assert outcome.code == 0, outcome.err
        text = ltx2rt(*command, "--components", "vocoder", "--verbose").out
        short = ltx2rt(*command, "--components", "vocoder").out
    report = outcome.json
    block = report["components"]["transformer_block"]
    assert block["layers"] == 3
    # two bytes an element
    manifest_elements = 296_904
    assert block["weight_bytes"] == 2 * manifest_elements
    assert block["buckets"][1].startswith("64x64x9: B 1, S 1024, Ta 1..38 (9), Tv 1..48 (8)")
    # at least its inputs and outputs of one run; far less than a card
    assert 1e5 < block["activation_bytes"] < 1e8
    assert report["card"] == "RTX 4060 (8 GiB)"
    assert "nothing was built" in text
    assert "fits: RTX 4060 (8 GiB) and larger" in text
    assert "vocoder: fp32" in text
    assert "letters: " in text
    assert len(short.splitlines()) == 7
    assert "vocoder: fp32" not in short


def test_dry_run_plans_what_a_build_makes(demo_model: dict[str, Path], tmp_path: Path) -> None:
    command = (
        "build", *build_flags(demo_model), "--backend", "tensorrt-rtx", "--shapes", "64x64x9",
        "--dry-run", "--components", "text_block,transformer_block",
    )  # fmt: skip
    plain = ltx2rt(*command, "--precision", "bf16", "--json").json
    mixed = ltx2rt(*command, "--precision", "fp8", "--plain-layers", "0", "--json").json
    whole, text = (plain["components"][n] for n in ("transformer_block", "text_block"))
    block, rest = (mixed["components"][f"transformer_block{n}"] for n in ("", "_plain"))
    assert (block["layers"], rest["layers"], rest["precision"]) == (2, 1, "bf16")
    assert rest["weight_bytes"] == whole["weight_bytes"] // 3
    assert [p["quantized_share"] > 0 for p in (block, rest, whole, text)] == [True, *[False] * 3]
    small = ltx2rt(*command, "--precision", "nvfp4", "--plain-layers", "0", "--json").json
    share = small["components"]["transformer_block"]["quantized_share"]
    assert 0.1 < share < block["quantized_share"] - 0.1  # it leaves the linears of the sound
    said = ltx2rt(*command, "--precision", "nvfp4", "--plain-layers", "0").out.splitlines()[0]
    assert f"nvfp4 ({share * 2 / 3:.0%} of the numbers in the transformer's layers, 16 bits" in said
    # linears of two layers weigh half: one byte an element, which lies in the bundle
    saved = 2 * rest["weight_bytes"] - block["weight_bytes"]
    assert 1e5 < saved < 2 * rest["weight_bytes"]
    assert mixed["disk_bytes"] == saved + sum(
        p["engine_bytes"] for p in mixed["components"].values()
    )
    for flags, said in (
        (("--precision", "fp8", "--lora", tmp_path / "none.safetensors"), "none.safetensors"),
        (("--precision", "fp8", "--plain-layers", "0,1,2"), "would quantise nothing"),
        (("--precision", "fp8", "--plain-layers", "9"), "blocks 0 to 2"),
    ):
        expect_user_error(ltx2rt(*command, *flags), said)
    # LoRAs as inputs have a range of ranks, in the block alone
    ranks = ltx2rt(*command, "--precision", "bf16", "--lora-inputs", "--json").json["components"]
    assert all(b.endswith(", r 1..512 (64)") for b in ranks["transformer_block"]["buckets"])
    assert ranks["text_block"] == text
    small = ("--backend", "onnxruntime", "--precision", "fp32")
    outcome = ltx2rt(*instead(*command, *small))
    assert outcome.code == 0, outcome.err
    assert "RTX" not in outcome.out
    assert "host memory: about " in outcome.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--components", "vocoder,decoder"), "components decoder are not in this model; it has"),
        (("--shapes", "70x64x9"), "Nearest valid: 64x64x9"),
        (("--target", "sm90"), "--backend tensorrt"),
        (("--precision", "fp8", "--target", "sm86"), "sm86"),
        (("--backend", "tensorrt"), "pip install tensorrt-cu13"),
        (("--cache-dir", "FILE"), "--cache-dir"),
    ],
)
def test_bad_requests_write_nothing(
    demo_model: dict[str, Path], tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    given = [str(file) if f == "FILE" else f for f in flags]
    with unchanged(tmp_path):
        asked = instead(*build_flags(demo_model), *RTX, *given)
        outcome = ltx2rt("build", *asked, "-o", tmp_path / "x")
        expect_user_error(outcome, said)


def test_build_needs_a_name(demo_model: dict[str, Path]) -> None:
    expect_user_error(ltx2rt("build", *build_flags(demo_model)), "-o BUNDLE")


def test_our_operators_are_in_the_graph_when_asked_for(
    demo_model: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX inlines their bodies; the bundle's graph says what it holds."""
    target = tmp_path / "b"
    flags = ("--components", "transformer_block", "--custom-ops", "on", "--cache-dir", cache_dir)
    outcome = ltx2rt("build", *build_flags(demo_model), *RTX, *flags, "-o", target, "--quiet")
    assert outcome.code == 0, outcome.err
    graph = onnx.load(str(target / "graphs/transformer_block.onnx"), load_external_data=False)
    ours = {n.op_type for n in graph.graph.node if n.domain == "ltx2rt"}
    assert {"MaskedFlashAttention", "QkNormRope"} <= ours, ours
    assert "--custom-ops on" in read_manifest(target).build_flags


def test_custom_ops_are_on_auto_or_off(demo_model: dict[str, Path], tmp_path: Path) -> None:
    outcome = ltx2rt(
        "build", *build_flags(demo_model), "--custom-ops", "maybe", "-o", tmp_path / "b"
    )
    expect_user_error(outcome, "custom_ops='maybe'; allowed: auto, on, off")


def test_float16_that_overflows_is_refused(demo_model: dict[str, Path], tmp_path: Path) -> None:
    """Before any engine is built; the message names the node, also where it would go into an
    operator of ours: only scores overflow here.
    """
    file, maps = SafetensorsFile(demo_model["checkpoint"]), MappedFiles()
    tensors = {n: maps.load(e, "float32") for n, e in file.items()}
    for x in "qk":
        name = f"model.diffusion_model.transformer_blocks.1.attn1.{x}_norm.weight"
        tensors[name] = tensors[name] * np.float32(2e3)
    model = {**demo_model, "checkpoint": tmp_path / demo_model["checkpoint"].name}
    write_safetensors(model["checkpoint"], tensors, file.metadata)
    parts = "transformer_head,transformer_block,transformer_tail"
    flags = ("--backend", "tensorrt-rtx", "--precision", "fp16", "--shapes", "64x64x9")
    flags += ("--custom-ops", "on")
    outcome = ltx2rt(
        "build", *build_flags(model), *flags, "--components", parts, "-o", tmp_path / "b", "--quiet"
    )
    expect_user_error(outcome, "overflows in transformer_block in layer 1: MatMul", "use bf16")
    assert not (tmp_path / "b").exists()
