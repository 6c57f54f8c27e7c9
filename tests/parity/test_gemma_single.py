"""Gemma in one file: as ComfyUI packs it, and as llama.cpp's GGUF; the same tiny model in each
makes the same components, and the same tokens.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from sentencepiece import sentencepiece_model_pb2

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.errors import CheckpointError, OptionError, UnsupportedError
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.bundle import build_bundle, open_inputs
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.demo.gemma import CORPUS, VOCABULARY
from ltx2rt_export.gemma_files import GemmaFiles, open_gemma
from ltx2rt_export.gemma_tokenizer import sentencepiece_vocabulary
from ltx2rt_export.inspect import format_inspection, inspect_path
from ltx2rt_export.modules.text_encoder import text_block, text_head
from ltx2rt_export.storage_format import with_encodings
from tests.parity.quantized_models import quantize_file

Demo = dict[str, Path]
ROOT = "language_model.model."
TEXTS = (
    *CORPUS,
    "Two  spaces, four    of them, and\n\nlines; 1,024 ticks.",
    "<start_of_turn>user\nÄrger, 漢字 and a 🎈<end_of_turn>",
    " leading and trailing ",
)
LINEARS = re.compile(r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.\w+_proj)$")


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A SentencePiece model in Gemma's style."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, vocab_size=VOCABULARY, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", unk_piece="<unk>", control_symbols=["<mask>"],
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "▁▁", "▁▁▁"],
        normalization_rule_name="identity", add_dummy_prefix=False, split_digits=True,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(demo_model: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's Gemma, with the window that every released Gemma 3 has."""
    place = tmp_path_factory.mktemp("gemma") / "folder"
    place.mkdir()
    for file in demo_model["gemma"].iterdir():
        (place / file.name).symlink_to(file)
    config = json.loads((place / "config.json").read_text())
    config["text_config"]["sliding_window"] = 1024
    (place / "config.json").unlink()
    (place / "config.json").write_text(json.dumps(config))
    return place


def tensors_of(gemma: GemmaFiles) -> dict[str, np.ndarray]:
    maps = MappedFiles()
    return {
        n.removeprefix(ROOT): maps.load(e, "float32")
        for n, e in gemma.tensors.items()
        if n.startswith(ROOT)
    }


def write_comfy(folder: Path, path: Path, spiece: bytes) -> Path:
    maps = MappedFiles()
    found = {
        n.replace(ROOT, "model."): (e.dtype, e.shape, (maps.raw(e).tobytes(),))
        for n, e in open_gemma(folder).tensors.items()
    }
    found["vision_model.head.weight"] = np.zeros((2, 2), np.float32)
    found["spiece_model"] = np.frombuffer(spiece, np.uint8)
    write_safetensors(path, found, {})
    return path


def write_gguf(folder: Path, path: Path, spiece: bytes, kind: Kind = Kind.F32) -> Path:
    """As llama.cpp converts it: other names, norms plus one, facts as keys."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_sliding_window(64)
    writer.add_rope_scaling_factor(8.0)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    vocabulary = sentencepiece_vocabulary(spiece, "test")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(vocabulary.pieces))
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.kinds))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 99)
    for name, value in tensors_of(open_gemma(folder)).items():
        theirs = names.get_name(f"model.{name}", (".weight",))
        if "norm" in name:
            writer.add_tensor(theirs, value + np.float32(1))
        elif LINEARS.search(name.removesuffix(".weight")) and value.shape[1] % 32 == 0:
            writer.add_tensor(theirs, quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values(entries: Mapping[str, TensorEntry]) -> dict[str, np.ndarray]:
    maps = MappedFiles()
    return {n: maps.load(e, "float32") for n, e in entries.items()}


def assert_same(got: GemmaFiles, want: GemmaFiles, tolerance: float = 0.0) -> None:
    for make in (text_head, text_block):
        ours, theirs = (make(g.config, with_encodings(g.tensors)) for g in (got, want))
        assert ours.options == theirs.options
        assert str(ours.module) == str(theirs.module)
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            first, second = values(one), values(other)
            assert first.keys() == second.keys()
            for name, value in second.items():
                np.testing.assert_allclose(first[name], value, rtol=0, atol=tolerance, err_msg=name)


def assert_tokens(gemma: GemmaFiles, spiece: bytes) -> None:
    """The tokens are those that SentencePiece itself finds."""
    official = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    made = Tokenizer(gemma.read_asset("tokenizer.json") or b"", "made")
    ids, mask = made.encode(TEXTS)
    for text, row, seen in zip(TEXTS, ids, mask, strict=True):
        want = [official.bos_id(), *official.encode(text.strip())]
        assert row[seen == 1].tolist() == want, text


def test_a_file_for_comfyui(folder: Path, spiece: bytes, tmp_path: Path) -> None:
    path = write_comfy(folder, tmp_path / "gemma_3_12B_it.safetensors", spiece)
    gemma = open_gemma(path)
    assert_same(gemma, open_gemma(folder))
    assert_tokens(gemma, spiece)
    assert gemma.tokenizer_path is None
    info = inspect_path(path)
    assert info["kind"] == "gemma"
    assert info["gemma"]["fits"] == ["LTX-2", "LTX-2.3"]
    assert "packed in the file" in format_inspection(info)


@pytest.mark.parametrize(
    "kind",
    [
        "fp8_scaled", "fp8_legacy", "fp8", "int8", "nf4_bitsandbytes", "nf4_bitsandbytes_nested",
        "int8_bitsandbytes",
    ],
)  # fmt: skip
def test_quantised_files_for_comfyui(
    kind: str, folder: Path, demo_model: Demo, spiece: bytes, tmp_path: Path
) -> None:
    plain = write_comfy(folder, tmp_path / "plain.safetensors", spiece)
    path = tmp_path / f"gemma_3_12B_it_{kind}.safetensors"
    decoded = quantize_file(plain, path, kind, LINEARS)
    model = open_model(demo_model["checkpoint"], path)  # as --gemma
    got = values(model.tensors("gemma"))
    assert len(decoded) == 6 * 7
    for name, value in decoded.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert inspect_path(path)["storage_format"]["buildable"]


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_gguf(kind: Kind, demo_model: Demo, spiece: bytes, tmp_path: Path) -> None:
    path = write_gguf(demo_model["gemma"], tmp_path / "gemma-3-12b-it.gguf", spiece, kind)
    gemma, want = open_gemma(path), open_gemma(demo_model["gemma"])
    # (1 + w) - 1 of norms loses half an ulp of values around one
    exact = kind is Kind.F32
    assert_same(gemma, want, 2**-24 if exact else 0.02)
    assert_tokens(gemma, spiece)
    info = inspect_path(path)
    assert (info["kind"], info["gemma"]["hidden_layers"]) == ("gemma", 6)
    assert "decoded while building" in format_inspection(info)


def test_a_bundle_of_gguf(demo_model: Demo, spiece: bytes, tmp_path: Path) -> None:
    path = write_gguf(demo_model["gemma"], tmp_path / "gemma.gguf", spiece, Kind.Q8_0)
    inputs = BuildInputs(checkpoint=str(demo_model["checkpoint"]), gemma=str(path))
    files = open_inputs(inputs)
    with pytest.raises(OptionError, match="copy_weights does not take GGUF"):
        build_bundle(files, inputs, tmp_path / "b", BuildConfig(copy_weights=True))
    want = values(files.tensors("gemma"))
    build_bundle(files, inputs, tmp_path / "b", BuildConfig(components=("text_head",)))
    path.unlink()
    bundle = open_bundle(tmp_path / "b")
    (layer,) = bundle.component("text_head").layers
    got = {n: MappedFiles().load(bundle.entry(n, ref), "float32") for n, ref in layer.items()}
    np.testing.assert_array_equal(got["embed_tokens.weight"], want["model.embed_tokens.weight"])
    made = json.loads((tmp_path / "b/text/tokenizer.json").read_text(encoding="utf-8"))
    assert made["model"]["type"] == "BPE"


def test_what_is_no_gemma_3(folder: Path, spiece: bytes, tmp_path: Path) -> None:
    path = write_comfy(folder, tmp_path / "a.safetensors", spiece[:-300] + b"\xff" * 300)
    with pytest.raises(CheckpointError, match=r"spiece_model of .*a\.safetensors is damaged"):
        open_gemma(path).read_asset("tokenizer.json")
    unigram = sentencepiece_model_pb2.ModelProto()
    unigram.ParseFromString(spiece)
    unigram.trainer_spec.model_type = unigram.trainer_spec.UNIGRAM
    with pytest.raises(CheckpointError, match="no SentencePiece model of pairs"):
        sentencepiece_vocabulary(unigram.SerializeToString(), "it")
    bare = tmp_path / "bare.safetensors"
    file, maps = SafetensorsFile(path), MappedFiles()
    kept = {n: (e.dtype, e.shape, (maps.raw(e).tobytes(),)) for n, e in file.items() if n[0] != "s"}
    write_safetensors(bare, kept, {})
    with pytest.raises(CheckpointError, match="no `tokenizer_json` tensor, and no `spiece_model`"):
        open_gemma(bare)
    other = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(other, "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="architecture 'llama'; a text encoder must be"):
        open_gemma(other)
