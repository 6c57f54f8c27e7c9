"""Gemma 3 in one file without its configuration: as ComfyUI packs it, and as llama.cpp's GGUF.

What such files do not say follows from their tensors; the rest is the same in every Gemma 3
(spec/text_encoder.md §2.1).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.weights.codecs.ggml import LESS_ONE, gguf_package
from ltx2rt.weights.safetensors import Encoding, TensorEntry
from ltx2rt_export.gemma_tokenizer import Vocabulary
from ltx2rt_export.layouts.gguf_file import GgufFile, open_gguf

#: where the tensors of a GGUF file are put
_ROOT = "model."
#: modules of a layer -> llama.cpp's names
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OFFICIAL = {theirs: official for official, theirs in _LAYER.items()}
_WHOLE = {"token_embd": "embed_tokens", "output_norm": "norm"}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
#: what no encoder needs: RoPE factors follow from the configuration, the output is for text
_UNUSED = re.compile(r"(rope_freqs|output|mm\..*|v\..*)\.weight$")
#: the architecture that the file must name
_ARCHITECTURE = "gemma3"
#: keys of a GGUF file below its architecture -> those of a configuration
_KEYS = {
    "attention.sliding_window": "sliding_window",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}


def inferred_config(tensors: Mapping[str, TensorEntry], root: str) -> dict[str, Any] | None:
    """The configuration of a Gemma 3 from its tensors below `root`; None if it is another family's:
    Gemma 4 scales its layers.
    """
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.q_norm", "mlp.gate_proj")
    first = {n: tensors.get(f"{root}layers.0.{n}.weight") for n in names}
    embeddings = tensors.get(f"{root}embed_tokens.weight")
    found = [e.shape for e in (*first.values(), embeddings) if e is not None]
    if len(found) <= len(names) or f"{root}layers.0.layer_scalar" in tensors:
        return None
    query, key, (head_dim, *_), gate, (vocabulary, width) = found
    layers = {m[1] for n in tensors if (m := re.match(rf"{re.escape(root)}layers\.(\d+)\.", n))}
    text = {
        "model_type": "gemma3_text",
        "hidden_size": width,
        "intermediate_size": gate[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": query[0] // head_dim,
        "num_key_value_heads": key[0] // head_dim,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "vocab_size": vocabulary,
    }
    return {"model_type": "gemma3", "text_config": text}


@dataclasses.dataclass(frozen=True, slots=True)
class GgufGemma:
    """A Gemma 3 of llama.cpp under official names."""

    file: GgufFile
    tensors: Mapping[str, TensorEntry]
    config: Mapping[str, Any]


def open_gguf_gemma(path: Path) -> GgufGemma:
    """Open a Gemma 3 in GGUF; its norms, which llama.cpp stores plus one, are official ones again.

    Raises:
        CheckpointError: it is damaged, or tensors are missing.
        UnsupportedError: it is of another model, or in formats that are not read.
    """
    file, stored = open_gguf(path)
    reader = gguf_package(f"{path} is a GGUF file, which").GGUFReader(path)
    architecture = _value(reader, "general.architecture")
    if architecture != _ARCHITECTURE:
        raise UnsupportedError(
            f"{path} is a GGUF file of architecture {architecture!r}; a text encoder must be "
            f"{_ARCHITECTURE} (LTX-2 and LTX-2.3): for LTX-2.5 give its text encoder as "
            "safetensors."
        )
    tensors, unknown = {}, []
    for name, entry in stored.items():
        official = _official_name(name)
        if official is not None:
            tensors[official] = _official_entry(official, entry)
        elif not _UNUSED.match(name):
            unknown.append(name)
    if unknown:
        raise UnsupportedError(
            f"{path} holds tensors that no Gemma 3 has: {', '.join(sorted(unknown)[:5])}."
        )
    config = inferred_config(tensors, _ROOT)
    if config is None:
        raise CheckpointError(f"{path} is incomplete: it lacks embeddings or a first layer.")
    for key, name in _KEYS.items():
        value = _value(reader, f"{architecture}.{key}")
        if value is not None:
            config["text_config"][name] = value
    factor = _value(reader, f"{architecture}.rope.scaling.factor")
    if factor is not None:
        config["text_config"]["rope_scaling"]["factor"] = factor
    return GgufGemma(file, tensors, config)


def is_gguf_gemma(path: Path) -> bool:
    """Whether a file is a language model of llama.cpp rather than a transformer."""
    if path.suffix.lower() != ".gguf" or not path.is_file():
        return False
    return any(name.startswith("blk.") for name in open_gguf(path)[1])


def gguf_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary that a GGUF file brings along.

    Raises:
        CheckpointError: it has none, or one of another kind.
    """
    reader = gguf_package(f"{path} is a GGUF file, which").GGUFReader(path)
    parts = [_value(reader, f"tokenizer.ggml.{n}") for n in ("tokens", "scores", "token_type")]
    if _value(reader, "tokenizer.ggml.model") != "llama" or not all(parts):
        raise CheckpointError(f"{path} has no SentencePiece vocabulary; give the folder of Gemma.")
    pieces, scores, kinds = parts
    if not len(pieces) == len(scores) == len(kinds):
        raise CheckpointError(f"{path} is damaged: its vocabulary has parts of different lengths.")
    return Vocabulary(pieces, scores, kinds)


def _value(reader: Any, key: str) -> Any:
    """A value of the file; a float32 as the shortest number that rounds to it."""
    field = reader.get_field(key)
    value = None if field is None else field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _official_name(name: str) -> str | None:
    if (match := _BLOCK.fullmatch(name)) and match[2] in _OFFICIAL:
        return f"{_ROOT}layers.{match[1]}.{_OFFICIAL[match[2]]}.weight"
    own = _WHOLE.get(name.removesuffix(".weight"))
    return None if own is None else f"{_ROOT}{own}.weight"


def _official_entry(official: str, entry: TensorEntry) -> TensorEntry:
    entry = dataclasses.replace(entry, name=official)
    if "norm" not in official:
        return entry
    if entry.dtype != "float32":
        raise UnsupportedError(f"{entry.path}: {official} is {entry.dtype}, expected float32.")
    encoding = Encoding(format=LESS_ONE, shape=(1, entry.length), group=1, parts={})
    return dataclasses.replace(entry, dtype="uint8", encoding=encoding)
