"""Gemma in one file without its configuration: Gemma 3 as ComfyUI packs it, Gemma 3 and 4 as
llama.cpp's GGUF.

What such files do not say follows from their tensors; the rest is the same in every Gemma 3
(spec/text_encoder.md §2.1), and in every Gemma 4 without parts for its sizes for phones (§2.2).
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
from ltx2rt.weights.safetensors import Encoding, MappedFiles, TensorEntry
from ltx2rt_export.gemma_tokenizer import UNKNOWN, Vocabulary
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
_OFFICIAL = {theirs: f"{official}.weight" for official, theirs in _LAYER.items()} | {
    "layer_output_scale": "layer_scalar"  # of Gemma 4
}
_WHOLE = {"token_embd": "embed_tokens", "output_norm": "norm"}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
#: what no encoder needs: RoPE factors follow from the configuration, the output is for text
_UNUSED = re.compile(r"(rope_freqs|output|mm\..*|v\..*)\.weight$")
#: architectures that a file may name -> the model that it is
_ARCHITECTURES = {"gemma3": "Gemma 3", "gemma4": "Gemma 4"}
#: what smaller models of Gemma 4 have, below their architecture: none of it is read
_ABSENT = ("attention.shared_kv_layers", "embedding_length_per_layer_input", "expert_count")
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
    """A Gemma of llama.cpp under official names."""

    file: GgufFile
    tensors: Mapping[str, TensorEntry]
    config: Mapping[str, Any]


def open_gguf_gemma(path: Path) -> GgufGemma:
    """Open a Gemma 3 or 4 in GGUF; norms of Gemma 3, which llama.cpp stores plus one, are official
    ones again.

    Raises:
        CheckpointError: it is damaged, or tensors are missing.
        UnsupportedError: it is of another model, or in formats that are not read.
    """
    file, stored = open_gguf(path)
    reader = gguf_package(f"{path} is a GGUF file, which").GGUFReader(path)
    architecture = _value(reader, "general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedError(
            f"{path} is a GGUF file of architecture {architecture!r}; a text encoder must be "
            "gemma3 (LTX-2 and LTX-2.3) or gemma4 (LTX-2.5)."
        )
    plus_one = architecture == "gemma3"
    tensors, unknown = {}, []
    for name, entry in stored.items():
        official = _official_name(name)
        if official is not None:
            tensors[official] = _official_entry(official, entry, plus_one=plus_one)
        elif not _UNUSED.match(name):
            unknown.append(name)
    if unknown:
        raise UnsupportedError(
            f"{path} holds tensors that no {_ARCHITECTURES[architecture]} of these models has: "
            f"{', '.join(sorted(unknown)[:5])}."
        )
    if architecture == "gemma4":
        factors = stored.get("rope_freqs.weight")
        return GgufGemma(file, tensors, _gemma_4_config(path, reader, tensors, factors))
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


def _gemma_4_config(
    path: Path, reader: Any, tensors: Mapping[str, TensorEntry], factors: TensorEntry | None
) -> dict[str, Any]:
    """The configuration of a Gemma 4: sizes from its tensors, the rest from the file's keys.

    Args:
        factors: of the frequencies of full attention: 1 for those that turn.

    Raises:
        CheckpointError: tensors are missing, or contradict each other.
        UnsupportedError: it is one of the small models, or of experts.
    """
    present = [key for key in _ABSENT if _value(reader, f"gemma4.{key}")]
    if present:
        raise UnsupportedError(
            f"{path} is another Gemma 4 than that of LTX-2.5: it has {', '.join(present)}."
        )

    def shape(layer: int, name: str) -> tuple[int, ...] | None:
        entry = tensors.get(f"{_ROOT}layers.{layer}.{name}.weight")
        return None if entry is None else entry.shape

    embeddings = tensors.get(f"{_ROOT}embed_tokens.weight")
    count = len({m[1] for n in tensors if (m := re.match(r"model\.layers\.(\d+)\.", n))})
    norms = [shape(layer, "self_attn.q_norm") for layer in range(count)]
    pattern = _value(reader, "gemma4.attention.sliding_window_pattern")
    gate = shape(0, "mlp.gate_proj")
    if embeddings is None or gate is None or not count or None in norms:
        raise CheckpointError(f"{path} is incomplete: it lacks embeddings, norms or layers.")
    if not isinstance(pattern, list) or len(pattern) != count or not 0 < sum(pattern) < count:
        raise CheckpointError(f"{path} is damaged: its layers have no pattern of windows.")
    firsts = [pattern.index(True), pattern.index(False)]  # sliding, full
    dims = [(norms[i] or (0,))[0] for i in firsts]
    rows = [[(shape(i, f"self_attn.{n}_proj") or (0,))[0] for n in "qk"] for i in firsts]
    if any(dims[not one] != (norm or (0,))[0] for one, norm in zip(pattern, norms, strict=True)):
        raise CheckpointError(f"{path} is damaged: its layers do not fit its pattern of windows.")
    base, local, window, eps = (
        _value(reader, f"gemma4.{key}")
        for key in (
            "rope.freq_base", "rope.freq_base_swa", "attention.sliding_window",
            "attention.layer_norm_rms_epsilon",
        )
    )  # fmt: skip
    turning = 0.25
    if factors is not None:
        turning = float((MappedFiles().load(factors, "float32") == 1).mean())
    full = {
        "rope_type": "proportional",
        "rope_theta": base or 1e6,
        "partial_rotary_factor": turning,
    }
    text = {
        "model_type": "gemma4_unified_text",
        "attention_k_eq_v": shape(firsts[1], "self_attn.v_proj") is None,
        "head_dim": dims[0],
        "global_head_dim": dims[1],
        "hidden_size": embeddings.shape[1],
        "intermediate_size": gate[0],
        "layer_types": [f"{'sliding' if one else 'full'}_attention" for one in pattern],
        "num_attention_heads": rows[0][0] // max(dims[0], 1),
        "num_global_key_value_heads": rows[1][1] // max(dims[1], 1),
        "num_hidden_layers": count,
        "num_key_value_heads": rows[0][1] // max(dims[0], 1),
        "rms_norm_eps": eps or 1e-6,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": local or 1e4},
            "full_attention": full,
        },
        "sliding_window": window or 1024,
        "tie_word_embeddings": True,
        "vocab_size": embeddings.shape[0],
    }
    return {"model_type": "gemma4_unified", "text_config": text}


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
    kind, merges = (_value(reader, f"tokenizer.ggml.{n}") for n in ("model", "merges"))
    if kind not in ("llama", "gemma4") or not all(parts) or (kind == "gemma4" and not merges):
        raise CheckpointError(f"{path} has no vocabulary of Gemma; give the folder of Gemma.")
    pieces, scores, kinds = parts
    pairs = None
    if kind == "gemma4":  # pairs of pieces, in the order in which they are joined
        pairs = [tuple(str(text).split(" ")) for text in merges]
    if not len(pieces) == len(scores) == len(kinds) or any(len(p) != 2 for p in pairs or ()):
        raise CheckpointError(f"{path} is damaged: its vocabulary has parts of different lengths.")
    unknown = _value(reader, "tokenizer.ggml.unknown_token_id")
    if kind == "gemma4" and isinstance(unknown, int) and 0 <= unknown < len(kinds):
        kinds = [UNKNOWN if i == unknown else k for i, k in enumerate(kinds)]
    return Vocabulary(pieces, scores, kinds, pairs)


def _value(reader: Any, key: str) -> Any:
    """A value of the file; a float32 as the shortest number that rounds to it."""
    field = reader.get_field(key)
    value = None if field is None else field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _official_name(name: str) -> str | None:
    if (match := _BLOCK.fullmatch(name)) and match[2] in _OFFICIAL:
        return f"{_ROOT}layers.{match[1]}.{_OFFICIAL[match[2]]}"
    own = _WHOLE.get(name.removesuffix(".weight"))
    return None if own is None else f"{_ROOT}{own}.weight"


def _official_entry(official: str, entry: TensorEntry, *, plus_one: bool) -> TensorEntry:
    entry = dataclasses.replace(entry, name=official)
    if "norm" not in official or not plus_one:
        return entry
    if entry.dtype != "float32":
        raise UnsupportedError(f"{entry.path}: {official} is {entry.dtype}, expected float32.")
    encoding = Encoding(format=LESS_ONE, shape=(1, entry.length), group=1, parts={})
    return dataclasses.replace(entry, dtype="uint8", encoding=encoding)
