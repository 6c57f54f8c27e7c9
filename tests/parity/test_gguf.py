"""GGUF transformers: written with the `gguf` package, decoded exactly as it decodes them."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.errors import CheckpointError, OptionError, UnsupportedError
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.weights.codecs import ggml
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.bundle import build_bundle, open_inputs
from ltx2rt_export.checkpoint import ModelFiles, open_model
from ltx2rt_export.decode_gguf import OVERLAY, decode_gguf
from ltx2rt_export.fuse_loras import fuse_loras
from ltx2rt_export.inspect import format_inspection, inspect_path
from ltx2rt_export.layouts.gguf_file import is_gguf, open_gguf
from ltx2rt_export.modules.transformer import transformer_block
from tests.parity.demo_loras import write_demo_lora

Demo = dict[str, Path]
PREFIX = "model.diffusion_model."
#: formats that the package cannot write but reads: blocks of random bits
READ_ONLY = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS)
WRITTEN = (Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.F16, Kind.BF16)


def write_gguf(demo: Demo, path: Path) -> dict[str, np.ndarray]:
    """The demo's transformer, every linear in another format; returns what it must decode to."""
    file, maps = SafetensorsFile(demo["checkpoint"]), MappedFiles()
    writer, values = gguf.GGUFWriter(path, "ltxv"), {}
    for number, (name, entry) in enumerate(file.items()):
        if not name.startswith(PREFIX) or "embeddings_connector" in name:
            continue
        value = maps.load(entry, "float32")
        kind = WRITTEN[number % len(WRITTEN)]
        if value.ndim != 2 or value.shape[1] % 32 or "table" in name:
            kind = Kind.F32
        data = value if kind is Kind.F32 else quants.quantize(value, kind)
        own = name.removeprefix(PREFIX)
        writer.add_tensor(own, data, raw_dtype=kind)
        values[own] = value if kind is Kind.F32 else quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def opened(demo: Demo, path: Path) -> ModelFiles:
    whole = demo["checkpoint"]
    return open_model(path, demo["gemma"], video_vae=whole, audio_vae=whole, text_encoder=whole)


def test_a_transformer_decodes_exactly(demo_model: Demo, tmp_path: Path) -> None:
    path = tmp_path / "ltx-2.3-distilled-Q8_0.gguf"
    wanted = write_gguf(demo_model, path)
    model, maps = opened(demo_model, path), MappedFiles()
    assert (model.version.generation, model.version.is_distilled) == ("LTX-2.3", True)
    assert model.storage_format is None
    tensors = model.tensors("transformer")
    assert tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(maps.load(tensors[name], "float32"), value, name)

    stored = transformer_block(model.config("transformer"), tensors)
    (block,) = components = decode_gguf([stored], tmp_path, {stored.name: "float32"}, resume=True)
    for index, layer in enumerate(block.layers):
        assert not any(is_gguf(entry) for entry in layer.values())
        for name, entry in layer.items():
            want = wanted[f"transformer_blocks.{index}.{name}"]
            np.testing.assert_array_equal(maps.load(entry, "float32"), want)
    narrow = decode_gguf(components, tmp_path, {block.name: "bfloat16"}, resume=True)
    assert narrow == components  # nothing is left to decode

    info = inspect_path(path)
    assert info["kind"] == "transformer"
    assert info["storage_format"]["formats"]["Q8_0"] > 5
    assert "decoded while building" in format_inspection(info)

    lora = Lora(path=str(tmp_path / "lora.safetensors"))
    write_demo_lora(Path(lora.path), demo_model, seed=3)
    (fused,) = fuse_loras([stored], model, [lora], tmp_path / "fused")
    base = wanted["transformer_blocks.0.attn1.to_q.weight"]
    changed = fused.layers[0]["attn1.to_q.weight"]
    assert changed.path.name == "loras.safetensors"
    assert not np.array_equal(maps.load(changed, "float32"), base)


def test_a_bundle_holds_what_was_decoded(demo_model: Demo, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    wanted = write_gguf(demo_model, path)
    whole = str(demo_model["checkpoint"])
    inputs = BuildInputs(
        checkpoint=str(path), gemma=str(demo_model["gemma"]), video_vae=whole, audio_vae=whole,
        text_encoder=whole,
    )  # fmt: skip
    files = open_inputs(inputs)
    with pytest.raises(OptionError, match="copy_weights does not take GGUF"):
        build_bundle(files, inputs, tmp_path / "b", BuildConfig(copy_weights=True))
    config = BuildConfig(components=("transformer_head",))
    build_bundle(files, inputs, tmp_path / "b", config)
    path.unlink()
    bundle = open_bundle(tmp_path / "b")
    assert [s.path for s in bundle.manifest.sources] == [f"weights/{OVERLAY}"]
    (layer,) = bundle.component("transformer_head").layers
    for name, ref in layer.items():
        got = MappedFiles().load(bundle.entry(name, ref), "float32")
        np.testing.assert_array_equal(got, wanted[name])


@pytest.mark.parametrize("kind", READ_ONLY, ids=lambda kind: kind.name)
def test_k_quants_are_read(tmp_path: Path, kind: Kind) -> None:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(kind.value)
    data = random.integers(0, 255, (5, 2 * size), dtype=np.uint8)
    data &= 0x3F  # scales stay finite
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "ltxv")
    writer.add_tensor("a.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, tensors = open_gguf(tmp_path / "x.gguf")
    assert tensors["a.weight"].shape == (5, 2 * values)
    got = MappedFiles().load(tensors["a.weight"], "float32")
    np.testing.assert_array_equal(got, quants.dequantize(data, kind))
    assert np.isfinite(got).all()


def test_long_tensors_decode_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    codes = quants.quantize(value, Kind.Q8_0)
    monkeypatch.setattr(ggml, "_STEP_VALUES", 100)
    got = ggml.decode((7, 64), "ggml_q8_0", codes)
    np.testing.assert_array_equal(got, quants.dequantize(codes, Kind.Q8_0))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (struct.pack("<QQ", 2**60, 0), "ends in its head"),  # so many tensors
        (struct.pack("<QQQ4sIIQ", 0, 1, 4, b"name", 9, 8, 2**60), "ends in its head"),  # texts
        (struct.pack("<QQQ", 0, 1, 2**63), "claims more than there is"),  # a name so long
    ],
)
def test_counts_of_a_hostile_head_are_not_believed(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + head)
    with pytest.raises(CheckpointError, match=said):
        open_gguf(path)


def test_what_is_not_read_is_said(demo_model: Demo, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "ltxv")
    size = gguf.GGML_QUANT_SIZES[Kind.IQ1_S][1]
    writer.add_tensor("a.weight", np.zeros((2, size), np.uint8), raw_dtype=Kind.IQ1_S)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="1 tensors as IQ1_S, which is not read"):
        open_model(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises((CheckpointError, UnsupportedError)):
        open_model(path)
    whole = tmp_path / "whole.gguf"
    write_gguf(demo_model, whole)
    whole.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"truncated"):
        open_model(whole)
    with pytest.raises(CheckpointError, match=r"only `ltx2rt build` takes one"):
        open_lora(path)
