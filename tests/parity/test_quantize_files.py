"""Quantised weights: what is carried over bit by bit, what is encoded again, and at what memory."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks.real_size import LTX23, transformer_components
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import Tensor, write_manifest
from ltx2rt.bundle.memory import layer_bytes
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.progress import Job
from ltx2rt.weights.codecs import nvfp4
from ltx2rt.weights.codecs.engine_formats import ENGINE_FORMATS
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.component import Component
from ltx2rt_export.modules.transformer import transformer_block
from ltx2rt_export.quantize.layer_choice import plan_quantization
from ltx2rt_export.quantize.overlay import Overlays, write_overlays
from ltx2rt_export.quantize.prepare import attach_overlays, prepare
from ltx2rt_export.storage_format import with_encodings
from ltx2rt_export.verify import verify_bundle
from tests.parity import tiny_transformer as tiny
from tests.parity.command_line import use_graphs_of
from tests.parity.demo_loras import write_demo_lora
from tests.parity.quantized_models import quantize_file
from tests.tolerances import FP8_DEMO_LATENT_REL_L2, LORA_INPUTS_REL_L2

#: the linears of one block of two
BLOCK_1 = re.compile(
    r"^transformer_blocks\.1\.\S*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)$"
)
FILES = MappedFiles()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SafetensorsFile:
    path = tmp_path_factory.mktemp("plain") / "tiny.safetensors"
    return tiny.write_checkpoint(path, tiny.tiny_config("2.3"))


def quantized_block(
    plain: SafetensorsFile, folder: Path, kind: str
) -> tuple[Component, dict[str, np.ndarray]]:
    """A block whose second layer is quantised, and the values it stands for."""
    path = folder / f"{kind}.safetensors"
    decoded = quantize_file(plain.path, path, kind, BLOCK_1)
    return transformer_block(tiny.METADATA, with_encodings(SafetensorsFile(path))), decoded


def overlays_of(component: Component, precision: str, folder: Path) -> Overlays:
    plan = plan_quantization(component, precision)
    assert plan is not None
    return write_overlays(component, plan, folder / f"{precision}.overlays", Job())


def parts_of(overlays: Overlays, module: str) -> dict[str, Array]:
    start = f"{module}."
    found = {n.removeprefix(start): e for n, e in overlays[1].items() if n.startswith(start)}
    return {part: FILES.raw(entry) for part, entry in found.items()}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("fp8_scaled", "fp8"),
        ("fp8_legacy", "fp8"),
        ("fp8_rows", "fp8"),
        ("fp8", "fp8"),
        ("nvfp4", "nvfp4"),
        ("int8", "int8-wo"),
    ],
)
def test_codes_and_scales_of_the_same_format_are_carried_over(
    kind: str, precision: str, plain: SafetensorsFile, tmp_path: Path
) -> None:
    component, decoded = quantized_block(plain, tmp_path, kind)
    plan = plan_quantization(component, precision)
    assert plan is not None
    assert (plan.exact, plan.plain_layers, len(plan.modules)) == (True, (0,), 28)
    overlays = overlays_of(component, precision, tmp_path)
    assert overlays[0] == {}
    file = SafetensorsFile(tmp_path / f"{kind}.safetensors")
    for module in plan.modules:
        parts = parts_of(overlays, module)
        name = f"transformer_blocks.1.{module}.weight"
        codes = FILES.raw(file[name])
        stored = nvfp4.swap_nibbles(codes) if kind == "nvfp4" else codes
        np.testing.assert_array_equal(parts["weight"], stored)
        values = plan.rewrite.format.decode(parts)
        np.testing.assert_array_equal(values, decoded[name])


@pytest.mark.parametrize(("kind", "precision"), [("nf4", "fp8"), ("fp8_scaled", "nvfp4")])
def test_other_formats_are_decoded_and_encoded_again(
    kind: str, precision: str, plain: SafetensorsFile, tmp_path: Path
) -> None:
    component, decoded = quantized_block(plain, tmp_path, kind)
    plan = plan_quantization(component, precision)
    assert plan is not None
    assert not plan.exact
    overlays = overlays_of(component, precision, tmp_path)
    for module in plan.modules:
        values = decoded[f"transformer_blocks.1.{module}.weight"]
        want = plan.rewrite.format.encode(values)
        got = parts_of(overlays, module)
        assert got.keys() == want.keys()
        for part, array in want.items():
            np.testing.assert_array_equal(got[part], array)


def test_static_scales_come_from_the_file(plain: SafetensorsFile, tmp_path: Path) -> None:
    component, _ = quantized_block(plain, tmp_path, "fp8_scaled")
    overlays = overlays_of(component, "fp8-static", tmp_path)
    scales = [FILES.raw(e) for n, e in overlays[1].items() if n.endswith(".input_scale")]
    assert len(scales) == 28
    np.testing.assert_array_equal(scales, np.full((28, 1), 0.01, np.float32))


def test_static_scales_are_asked_for_in_vain(plain: SafetensorsFile) -> None:
    component = transformer_block(tiny.METADATA, plain)
    with pytest.raises(UnsupportedError, match=r"fp8-static.*activation scales.*use 'fp8'"):
        plan_quantization(component, "fp8-static")


@pytest.mark.parametrize("precision", ["fp8", "fp8-static"])
def test_a_quantised_file_decides_which_linears(
    precision: str, plain: SafetensorsFile, tmp_path: Path
) -> None:
    path = tmp_path / "some.safetensors"
    only = re.compile(r"^transformer_blocks\.1\.(audio_)?attn\d\.to_q$")
    quantize_file(plain.path, path, "fp8_scaled", only)
    block = transformer_block(tiny.METADATA, with_encodings(SafetensorsFile(path)))
    plan = plan_quantization(block, precision)
    assert plan is not None
    want = {"attn1.to_q", "attn2.to_q", "audio_attn1.to_q", "audio_attn2.to_q"}
    assert (set(plan.modules), plan.plain_layers) == (want, (0,))


def test_layers_at_the_ends_stay_in_16_bits(plain: SafetensorsFile) -> None:
    head, block, _ = transformer_components(LTX23)
    plan = plan_quantization(block, "fp8")
    assert plan is not None
    assert plan.plain_layers == (0, 43, 44, 45, 46, 47)
    assert len(plan.modules) == 28
    every = plan_quantization(block, "fp8", plain_layers=())
    assert every is not None
    assert every.plain_layers == ()
    assert plan_quantization(head, "fp8") is None
    assert plan_quantization(block, "bf16") is None
    small = plan_quantization(transformer_block(tiny.METADATA, plain), "fp8")
    assert small is not None
    assert small.plain_layers == ()  # too few layers to leave six out
    with pytest.raises(OptionError, match=r"layers \[48\] cannot.*blocks 0 to 47"):
        plan_quantization(block, "fp8", plain_layers=(1, 48))
    with pytest.raises(UnsupportedError, match="quantise nothing"):
        plan_quantization(block, "fp8", plain_layers=range(48))


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_memory_stays_at_one_tensor(precision: str, tmp_path: Path) -> None:
    """A file of 24 tensors: numpy never holds more than a few copies of one of them."""
    shape, modules = (1024, 1536), ("attn1.to_q", "ff.net.2")
    bits = np.random.default_rng(0).integers(0x3C00, 0x3D00, shape, np.uint16)
    names = [f"transformer_blocks.{i}.{m}.weight" for i in range(12) for m in modules]
    path = tmp_path / "large.safetensors"
    write_safetensors(path, {n: ("bfloat16", shape, (bits,)) for n in names})
    file = SafetensorsFile(path)
    assert file.file_bytes > 72e6
    layers = tuple(
        {f"{m}.weight": file[f"transformer_blocks.{i}.{m}.weight"] for m in modules}
        for i in range(12)
    )
    component = Component(
        name="transformer_block", module=nn.Identity(), inputs=(), outputs=(),
        weights=layers[0], layers=layers, weight_binding="input", trace={},
    )  # fmt: skip
    tracemalloc.start()
    overlays = overlays_of(component, precision, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(layer) for layer in overlays) == 24 * (2 if precision == "fp8" else 3)
    one_float32 = np.prod(shape) * 4
    assert peak < 4 * one_float32  # its bits widened, its values, its codes


def quantized_copy(
    source: Path,
    model: dict[str, Path],
    target: Path,
    precision: str,
    plain_layers: tuple[int, ...] = (),
    *,
    lora_inputs: bool = False,
) -> Path:
    """A copy of a float32 bundle with its block quantised; everything else stays."""
    from ltx2rt_export.catalog import COMPONENTS
    from ltx2rt_export.checkpoint import open_model

    shutil.copytree(source, target)
    bundle = open_bundle(target)
    manifest, old = bundle.manifest, bundle.component("transformer_block")
    row = next(r for r in COMPONENTS if r.name == "transformer_block")
    component = row.make(open_model(**model))
    entries = dict(manifest.components)
    overlays = {}
    for part in prepare(
        component,
        precision,
        target / "weights",
        Job(),
        dtype="float32",
        plain_layers=plain_layers,
        lora_inputs=lora_inputs,
    ):
        name, data = part.graph.component.name, part.graph.model.SerializeToString()
        (target / f"graphs/{name}.onnx").write_bytes(data)
        overlays[name] = part.overlays
        entries[name] = dataclasses.replace(
            old,
            graph=f"graphs/{name}.onnx",
            graph_sha256=hashlib.sha256(data).hexdigest(),
            precision=part.precision,
            unmasked=None,
            inputs=tuple(
                Tensor(name=t.name, dtype=t.dtype, shape=t.shape)
                for t in part.graph.component.inputs
            ),
            options=dict(part.graph.component.options),
            transposed=tuple(sorted(part.graph.transposed)),
            layers=tuple(
                refs if layer else {}
                for refs, layer in zip(old.layers, part.graph.component.layers, strict=True)
            ),
            weight_dtypes=part.weight_dtypes,
            quantized=dict(part.quantized),
        )
    entries, sources = attach_overlays(entries, manifest.sources, overlays, target)
    write_manifest(
        dataclasses.replace(manifest, components=entries, sources=tuple(sources)), target
    )
    return target


def block_weights(bundle: Bundle, *loras: Lora) -> dict[str, Array]:
    loader = Loader(bundle)
    return {
        f"{name}.{i}.{weight}": array
        for name in TRANSFORMER_BLOCKS
        if bundle.has(name)
        for i in bundle.component(name).served
        for weight, array in loader.weights(name, i, loras).items()
    }


def assert_equal(got: dict[str, Array], want: dict[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture(scope="module")
def loras(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Lora]:
    folder = tmp_path_factory.mktemp("loras")
    paths = [write_demo_lora(folder / f"{i}.safetensors", demo_model, i) for i in range(2)]
    return [Lora(path=str(p), strength=s) for p, s in zip(paths, (0.8, -0.5), strict=True)]


@pytest.mark.parametrize("precision", ["fp8", "nvfp4", "int8-wo", "int4-wo"])
def test_loras_come_and_go_without_trace(
    precision: str,
    demo_bundle: Path,
    demo_model: dict[str, Path],
    loras: list[Lora],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_graphs_of(demo_bundle, monkeypatch)
    path = quantized_copy(demo_bundle, demo_model, tmp_path / "b", precision, (0,))
    bundle, base = open_bundle(path), open_bundle(demo_bundle)
    entry = bundle.component("transformer_block")
    loader = Loader(bundle)
    layers = [loader.weights("transformer_block", i) for i in range(len(entry.layers))]
    held = [sum(a.nbytes for a in weights.values()) for weights in layers]
    assert layer_bytes(entry) == held  # what `doctor` plans with
    fresh = {
        "none": block_weights(open_bundle(path)),
        "a": block_weights(open_bundle(path), loras[0]),
        "b": block_weights(open_bundle(path), loras[1]),
    }
    for name, chosen in (("a", loras[:1]), ("b", loras[1:]), ("none", [])):
        assert_equal(block_weights(bundle, *chosen), fresh[name])
    # the merged weight, encoded by the same table
    merged = Loader(base).weights("transformer_block", 1, loras[:1])
    kind = ENGINE_FORMATS[entry.quantized["attn1.to_q.weight"]]
    for part, array in kind.encode(np.ascontiguousarray(merged["attn1.to_q.weight"].T)).items():
        name = f"attn1.to_q.{part}"
        got = fresh["a"][f"transformer_block.1.{name}"]
        np.testing.assert_array_equal(got.T if name in entry.transposed else got, array)
        assert not np.array_equal(got, fresh["none"][f"transformer_block.1.{name}"])


def test_a_clip_on_two_block_engines(
    demo_bundle: Path,
    demo_model: dict[str, Path],
    loras: list[Lora],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FP8 in blocks 1 and 2, float32 in block 0; a LoRA comes and goes."""
    use_graphs_of(demo_bundle, monkeypatch)
    path = quantized_copy(demo_bundle, demo_model, tmp_path / "b", "fp8", (0,))
    request = GenerationConfig(
        prompt="a lake", seed=3, height=64, width=64, num_frames=9, tiling="none"
    )
    runtime = RuntimeConfig(threads=1, residency="resident")
    with DistilledPipeline(open_bundle(demo_bundle), runtime) as pipe:
        exact = pipe(request).video_latent
    with DistilledPipeline(open_bundle(path), runtime) as pipe:
        first = pipe(request).video_latent
        other = pipe(dataclasses.replace(request, loras=(loras[0],))).video_latent
        again = pipe(request).video_latent
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 1e-3
    error = np.linalg.norm(first - exact) / np.linalg.norm(exact)
    assert 1e-3 < error < FP8_DEMO_LATENT_REL_L2


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_low_rank_inputs_give_what_merging_gives(
    precision: str,
    demo_bundle: Path,
    demo_model: dict[str, Path],
    loras: list[Lora],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two LoRAs on ONNX Runtime; with FP8 the base weight is quantised without them."""
    use_graphs_of(demo_bundle, monkeypatch)
    copy = quantized_copy(demo_bundle, demo_model, tmp_path / "b", precision, lora_inputs=True)
    bundle, merged = open_bundle(copy), open_bundle(demo_bundle)
    assert len(bundle.options("transformer_block")["lora_inputs"]) == 34
    request = GenerationConfig(
        prompt="a lake", seed=3, height=64, width=64, num_frames=9, tiling="none"
    )
    with_loras = dataclasses.replace(request, loras=tuple(loras))
    runtime = RuntimeConfig(threads=1)
    with DistilledPipeline(merged, runtime) as pipe:
        want, base = pipe(with_loras).video_latent, pipe(request).video_latent
    with DistilledPipeline(bundle, runtime) as pipe:
        first, adapted, again = (pipe(r).video_latent for r in (request, with_loras, request))
    np.testing.assert_array_equal(first, again)
    bound = {"fp32": LORA_INPUTS_REL_L2, "fp8": FP8_DEMO_LATENT_REL_L2}[precision]
    assert np.linalg.norm(adapted - want) / np.linalg.norm(want) < bound
    assert np.linalg.norm(want - base) / np.linalg.norm(base) > 5 * LORA_INPUTS_REL_L2
    if precision == "fp32":
        np.testing.assert_allclose(first, base, rtol=1e-4, atol=1e-4)


def test_verify_measures_both_block_graphs(
    demo_bundle: Path,
    demo_model: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ltx2rt_export.catalog import COMPONENTS
    from ltx2rt_export.checkpoint import open_model

    use_graphs_of(demo_bundle, monkeypatch)
    bundle = open_bundle(quantized_copy(demo_bundle, demo_model, tmp_path / "b", "fp8", (0,)))
    row = next(r for r in COMPONENTS if r.name == "transformer_block")
    rungs = list(verify_bundle(bundle, [row.make(open_model(**demo_model))]))
    assert {(r.component, r.layer) for r in rungs} == {
        ("transformer_block", 1),
        ("transformer_block", 2),
        ("transformer_block_plain", 0),
    }
    assert all(r.passed for r in rungs)
    assert all((r.rel_rms > 1e-3) == (r.component == "transformer_block") for r in rungs)
