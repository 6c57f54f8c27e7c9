"""What tells one Gemma from another without `transformers`: where its tensors lie, and the values
of its configuration that decide its graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx2rt.errors import CheckpointError
from ltx2rt_export.component import TensorIndex

#: where the language model may lie: as published, in the newer nesting, as LTX-2.5 packs it, bare
GEMMA_ROOTS = (
    "language_model.model.",
    "model.language_model.",
    "model.language_model.model.",
    "language_model.",
    "model.",
    "",
)


def gemma_root(tensors: TensorIndex) -> str:
    """The prefix of the language model's tensors in a file or a directory of files.

    Raises:
        CheckpointError: there is no Gemma language model.
    """
    for root in GEMMA_ROOTS:
        if f"{root}embed_tokens.weight" in tensors:
            return root
    raise CheckpointError(
        "no Gemma language model found: looked for "
        + ", ".join(f"{root}embed_tokens.weight" for root in GEMMA_ROOTS)
        + "; pass the Gemma directory or text-encoder file that belongs to the model."
    )


#: values that every Gemma's configuration may leave out -> what they are then
COMMON: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "head_dim": 256,
    "layer_types": None,
    "rope_parameters": None,
}

#: those of a family; layers of full attention are every sixth in both
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vocab_size": 262_208,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    "gemma4_unified": {
        "vocab_size": 262_144,
        "sliding_window": 1024,
        "global_head_dim": 512,
        "num_global_key_value_heads": None,
        "attention_k_eq_v": False,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "use_bidirectional_attention": "vision",
    },
}

#: sizes that have to be there
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip

#: values that change no graph of the encoder
IGNORED = frozenset({
    "_name_or_path", "_sliding_window_pattern", "architectures", "attention_dropout",
    "bos_token_id", "cache_implementation", "dtype", "eos_token_id", "final_logit_softcapping",
    "gemma_version", "initializer_range", "max_position_embeddings", "model_type", "pad_token_id",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip


def gemma_facts(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Everything in a Gemma's configuration that decides its graphs, defaults filled in; None for
    a family, or with a value, that is not in the tables above.
    """
    family = str(config.get("model_type")).removesuffix("_text")
    text = config.get("text_config") or config
    if family not in DEFAULTS or not isinstance(text, Mapping):
        return None
    known = COMMON | DEFAULTS[family]
    given = {name: value for name, value in text.items() if name not in IGNORED}
    if not given.keys() <= {*known, *SIZES} or not given.keys() >= set(SIZES):
        return None
    facts = {**known, **given}
    layers = facts["num_hidden_layers"]
    pattern = facts.get("sliding_window_pattern", 6)
    usual = [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)
    ]
    if facts["layer_types"] == usual:
        facts["layer_types"] = None
    return {"family": family, **facts}


def blocks_differ(facts: Mapping[str, Any]) -> bool:
    """Whether the layers of full attention have other weights than the others."""
    if facts["family"] != "gemma4_unified":
        return False
    heads = facts["num_global_key_value_heads"] or facts["num_key_value_heads"]
    return bool(
        facts["attention_k_eq_v"]
        or facts["global_head_dim"] != facts["head_dim"]
        or heads != facts["num_key_value_heads"]
    )
