"""Gemma 4 in llama.cpp's GGUF as the text encoder of LTX-2.5: the same tiny model in the official
packed file gives the same components, configuration and tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.names import TEXT_BLOCK_FULL
from ltx2rt.weights.safetensors import MappedFiles
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.component import Component
from ltx2rt_export.gemma_files import GemmaFiles, check_gemma_version, open_gemma
from ltx2rt_export.inspect import inspect_path
from ltx2rt_export.layouts.open import open_weights
from ltx2rt_export.modules.text_encoder import text_block, text_head

FULL = (2, 5)
LAYERS, WIDTH, INNER, HEADS, WORDS = 6, 64, 96, 4, ("a", "l", "k", "e", "b", "o", "t", "s")
DIMS = {False: 16, True: 32}  # of a head, by whether attention is full
MERGES = [("▁", "a"), ("l", "a"), ("la", "k"), ("lak", "e"), ("▁", "lake"), ("b", "o"), ("bo", "a")]
TEXTS = ["a lake", "boats at a lake", "<unused> lake", "é!"]
VERSION = "gemma4-12b-ltx-v1"


def tensors() -> dict[str, np.ndarray]:
    """Under official names; layers of full attention take keys for values."""
    rng = np.random.default_rng(4)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (len(pieces()), WIDTH)}
    for layer in range(LAYERS):
        dim, full = DIMS[layer in FULL], layer in FULL
        attention = {"q_proj": (HEADS * dim, WIDTH), "k_proj": ((1 if full else 2) * dim, WIDTH)}
        attention |= {} if full else {"v_proj": (2 * dim, WIDTH)}
        attention |= {"o_proj": (WIDTH, HEADS * dim), "q_norm": (dim,), "k_norm": (dim,)}
        mlp = {"gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)}
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        own = {f"self_attn.{n}.weight": s for n, s in attention.items()}
        own |= {f"mlp.{n}.weight": s for n, s in mlp.items()}
        own |= {f"{n}_layernorm.weight": (WIDTH,) for n in norms} | {"layer_scalar": (1,)}
        shapes |= {f"layers.{layer}.{n}": s for n, s in own.items()}
    shapes["norm.weight"] = (WIDTH,)
    return {f"model.{n}": rng.standard_normal(s, np.float32) * 0.2 for n, s in shapes.items()}


def pieces() -> list[str]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused>"]
    return [*special, *(f"<0x{n:02X}>" for n in range(256)), "▁", *WORDS,
            *("".join(pair) for pair in MERGES)]  # fmt: skip


def tokenizer() -> dict[str, Any]:
    special = [
        {"id": i, "content": piece, "special": i < 4, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, piece in enumerate(pieces()[:5])
    ]
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    model |= {"vocab": {p: i for i, p in enumerate(pieces())}, "merges": MERGES}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    return {
        "version": "1.0", "added_tokens": special, "normalizer": replace, "model": model,
        "pre_tokenizer": split | {"invert": False}, "post_processor": None, "decoder": None,
    }  # fmt: skip


def config() -> dict[str, Any]:
    text = {
        "model_type": "gemma4_unified_text", "attention_k_eq_v": True, "head_dim": 16,
        "global_head_dim": 32, "hidden_size": WIDTH, "intermediate_size": INNER,
        "layer_types": [f"{'full' if i in FULL else 'sliding'}_attention" for i in range(LAYERS)],
        "num_attention_heads": HEADS, "num_global_key_value_heads": 1, "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "sliding_window": 64,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25,
            },
        },
        "tie_word_embeddings": True, "vocab_size": len(pieces()),
    }  # fmt: skip
    return {"model_type": "gemma4_unified", "gemma_version": VERSION, "text_config": text}


def write_packed(path: Path) -> Path:
    """As the official text encoder of LTX-2.5, without its projections."""
    packed = np.frombuffer(json.dumps(tokenizer()).encode(), np.uint8)
    found = {**tensors(), "tokenizer_json": packed}
    write_safetensors(path, found, {"gemma_config": json.dumps(config())})
    return path


def write_gguf(path: Path, kind: Kind = Kind.F32, **more: int) -> Path:
    """As llama.cpp's converter writes a Gemma 4: norms as they are, a scale of each layer."""
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_sliding_window(64)
    writer.add_sliding_window_pattern([layer not in FULL for layer in range(LAYERS)])
    writer.add_key_length(32)
    writer.add_key_length_swa(16)
    writer.add_head_count_kv([1 if layer in FULL else 2 for layer in range(LAYERS)])
    writer.add_shared_kv_layers(more.get("shared", 0))
    writer.add_embedding_length_per_layer_input(0)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_layer_norm_rms_eps(1e-6)
    types = [3, 3, 3, 3, 4, *[6] * 256, *[1] * (len(pieces()) - 261)]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(pieces())
    writer.add_token_scores([-1000.0] * len(pieces()))
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_unk_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA4, LAYERS)
    for name, value in tensors().items():
        theirs = names.get_name(name.removesuffix(".weight"))
        assert theirs is not None, name
        coded = kind is not Kind.F32 and "_proj" in name and value.shape[1] % 32 == 0
        stored = quants.quantize(value, kind) if coded else value
        writer.add_tensor(f"{theirs}.weight", stored, raw_dtype=kind if coded else None)
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * 4 + [1e30] * 12, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def parts(gemma: GemmaFiles) -> list[Component]:
    blocks = [text_block(gemma.config, gemma.tensors, *name) for name in ((), (TEXT_BLOCK_FULL,))]
    return [text_head(gemma.config, gemma.tensors), *blocks]


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_the_same_model_as_the_packed_file(kind: Kind, tmp_path: Path) -> None:
    want = open_gemma(write_packed(tmp_path / "gemma4.safetensors"))
    got = open_gemma(write_gguf(tmp_path / "gemma4.gguf", kind))
    assert got.config["text_config"] == want.config["text_config"]
    assert got.tensors.keys() == want.tensors.keys()
    maps = MappedFiles()
    for ours, theirs in zip(parts(got), parts(want), strict=True):
        assert ours.options == theirs.options
        assert str(ours.module) == str(theirs.module)
        for one, other in zip(
            ours.layers or (ours.weights,), theirs.layers or (theirs.weights,), strict=True
        ):
            assert one.keys() == other.keys()
            for name, entry in other.items():
                values = maps.load(one[name], "float32"), maps.load(entry, "float32")
                np.testing.assert_allclose(*values, rtol=0, atol=0.01 * (kind is Kind.Q8_0))


def test_the_same_tokens(tmp_path: Path) -> None:
    both = write_packed(tmp_path / "a.safetensors"), write_gguf(tmp_path / "a.gguf")
    found = [
        Tokenizer(open_gemma(p).read_asset("tokenizer.json") or b"", "a").encode(TEXTS)
        for p in both
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    ids, mask = found[0]
    assert [int(n) for n in ids[0][mask[0] == 1]] == [
        2,
        pieces().index("a"),
        pieces().index("▁lake"),
    ]


def test_it_is_explained_and_warned_of(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "gemma4.gguf")
    info = inspect_path(path)
    assert (info["kind"], info["gemma"]["fits"]) == ("gemma", ["LTX-2.5"])
    checkpoint = tmp_path / "t.safetensors"
    source = json.dumps({"gemma_version": VERSION})
    write_safetensors(checkpoint, {"x": np.zeros(1)}, {"gemma_source_checkpoint": source})
    weights = open_weights(checkpoint)
    said = check_gemma_version(weights, open_gemma(path), "LTX-2.5")
    assert said is not None
    assert "does not say which it is" in said
    packed = open_gemma(write_packed(tmp_path / "p.safetensors"))
    assert check_gemma_version(weights, packed, "LTX-2.5") is None


def test_another_gemma_4_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "e4b.gguf", shared=2)
    with pytest.raises(UnsupportedError, match=r"another Gemma 4 .* attention\.shared_kv_layers"):
        open_gemma(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        open_gemma(path)
