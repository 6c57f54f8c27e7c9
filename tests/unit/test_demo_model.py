"""The demo model: official names, loadable, the same for the same seed, and sane values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ltx2rt.weights.safetensors import MappedFiles
from ltx2rt_export.checkpoint import REQUIRED, open_model
from ltx2rt_export.demo import write_demo_model
from ltx2rt_export.demo.gemma import VOCABULARY

Demo = dict[str, Path]


def digests(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file()
    }


def test_nothing_is_missing(demo_model: Demo) -> None:
    model = open_model(**demo_model)
    assert all(model.has(role) for role in REQUIRED)
    assert model.version.generation == "LTX-2.3"
    assert model.version.is_distilled
    assert model.warnings == ()
    size = sum(p.stat().st_size for p in demo_model["checkpoint"].parent.rglob("*") if p.is_file())
    assert size < 40e6


def test_counts_are_those_of_published_structures(demo_model: Demo) -> None:
    model = open_model(**demo_model)
    # published: 4186 tensors in 48 blocks, of which 86 a block; 129 in 8 connector blocks each
    assert len(model.tensors("transformer")) == 4186 - 45 * 86
    assert len(model.tensors("connectors")) == 2 * (1 + 2 * 16)
    assert len(model.tensors("vocoder")) == 1227
    assert len(model.tensors("text_projection")) == 4


def test_shapes_agree_with_the_configuration(demo_model: Demo) -> None:
    model = open_model(**demo_model)
    transformer, config = model.tensors("transformer"), model.config("transformer")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    audio = config["num_attention_heads"] * config["audio_attention_head_dim"]
    block = "transformer_blocks.2."
    assert f"transformer_blocks.{config['num_layers']}.attn1.to_q.weight" not in transformer
    expected = {
        "patchify_proj.weight": (width, 128),
        "adaln_single.linear.weight": (9 * width, width),
        "av_ca_a2v_gate_adaln_single.linear.weight": (width, width),
        "av_ca_v2a_gate_adaln_single.linear.weight": (audio, audio),
        f"{block}audio_to_video_attn.to_q.weight": (audio, width),
        f"{block}audio_to_video_attn.to_out.0.weight": (width, audio),
        f"{block}video_to_audio_attn.to_k.weight": (audio, width),
        f"{block}audio_to_video_attn.to_gate_logits.weight": (4, width),
        f"{block}scale_shift_table_a2v_ca_audio": (5, audio),
        f"{block}audio_ff.net.2.weight": (audio, 4 * audio),
    }
    assert {name: transformer[name].shape for name in expected} == expected
    vae = model.tensors("video_vae")
    assert vae["encoder.conv_out.conv.weight"].shape == (129, 128, 3, 3, 3)
    assert vae["decoder.conv_out.conv.weight"].shape == (48, 8, 3, 3, 3)
    assert vae["per_channel_statistics.mean-of-means"].shape == (128,)


def test_modulation_tables_are_float32_as_published(demo_model: Demo) -> None:
    transformer = open_model(**demo_model).tensors("transformer")
    for name, entry in transformer.items():
        assert entry.dtype == ("float32" if "scale_shift_table" in name else "bfloat16"), name


def test_values_are_finite_and_alive(demo_model: Demo) -> None:
    model, files = open_model(**demo_model), MappedFiles()
    for role in (*REQUIRED, "spatial_upsampler"):
        for name, entry in model.tensors(role).items():
            values = files.load(entry, "float32")
            assert np.isfinite(values).all(), name
            assert np.abs(values).max() < 10, name
    statistics = model.tensors("video_vae")["per_channel_statistics.std-of-means"]
    assert files.load(statistics, "float32").min() > 0.8


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_demo_model(tmp_path / name, seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_the_tokenizer_is_gemmas(demo_model: Demo) -> None:
    from tokenizers import Tokenizer

    path = demo_model["gemma"] / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    special = ("<pad>", "<eos>", "<bos>", "<unk>")
    assert [tokenizer.token_to_id(token) for token in special] == [0, 1, 2, 3]
    assert tokenizer.get_vocab_size() <= VOCABULARY
    for text in ("A red balloon drifts over the harbour.", "Zürich 日本 🎈", "  two  spaces\n"):
        encoded = tokenizer.encode(text)
        assert encoded.ids[0] == 2
        assert 3 not in encoded.ids
        assert tokenizer.decode(encoded.ids) == text
    assert len(tokenizer.encode("A red balloon").ids) <= 5
    index = json.loads((demo_model["gemma"] / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2


def test_the_decoder_interpolates(demo_model: Demo) -> None:
    """Sub-positions of an upsampled cell have kernels that sum to the same channel mixing."""
    model, files = open_model(**demo_model), MappedFiles()
    entry = model.tensors("video_vae")["decoder.up_blocks.1.conv.conv.weight"]
    kernel = files.load(entry, "float32")
    sums = kernel.sum(axis=(2, 3, 4)).reshape(-1, 8, kernel.shape[1])
    # bfloat16 rounding of up to eight taps
    np.testing.assert_allclose(sums, np.broadcast_to(sums[:, :1], sums.shape), atol=0.01)
