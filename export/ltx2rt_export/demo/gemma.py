"""The demo's Gemma 3: a Hugging Face directory with a locally trained tokenizer and two shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.demo.random_weights import RandomWeights

HIDDEN_SIZE = 48
NUM_LAYERS = 6
HEADS, KEY_VALUE_HEADS, HEAD_DIM = 4, 2, 16
INTERMEDIATE_SIZE = 96
VOCABULARY = 640

SPECIAL_TOKENS = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>",
    "<start_of_image>", "<end_of_image>", "<image_soft_token>",
)  # fmt: skip

CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 7,
    "eoi_token_index": 8,
    "eos_token_id": [1, 6],
    "image_token_index": 9,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 4,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "model_type": "gemma3_text",
        "num_attention_heads": HEADS,
        "num_hidden_layers": NUM_LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 64,
        "vocab_size": VOCABULARY,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 32,
        "image_size": 56,
        "intermediate_size": 64,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
_GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "do_sample": True,
    "eos_token_id": [1, 6],
    "pad_token_id": 0,
    "top_k": 64,
    "top_p": 0.95,
}
_TOKENIZER_CONFIG: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 10**30,
    "padding_side": "left",
    "processor_class": "Gemma3Processor",
    "tokenizer_class": "GemmaTokenizer",
    "spaces_between_special_tokens": False,
    "sp_model_kwargs": None,
    "use_default_system_prompt": False,
}

#: text the tokenizer's merges are learned from
CORPUS = (
    "A red balloon drifts slowly over the quiet harbour while gulls call in the distance.",
    "The camera follows a woman who walks through a field of tall grass at sunset.",
    "Soft rain falls on the window; a piano plays a slow melody in another room.",
    "A dog runs along the beach, waves are breaking, the sky is turning orange and blue.",
    "Close-up of hands that are shaping clay on a wheel, warm light, gentle hum of the motor.",
    "worst quality, low quality, blurry, distorted, watermark, inconsistent motion, static",
)


def write_gemma(directory: Path, seed: int) -> None:
    """Write configuration, tokenizer, and weights in two shards with their index."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", _GENERATION_CONFIG),
        ("processor_config.json", {"image_seq_length": 4, "processor_class": "Gemma3Processor"}),
        ("tokenizer_config.json", _TOKENIZER_CONFIG),
        ("tokenizer.json", make_tokenizer()),
    ):
        _write_json(directory / name, content)
    weights = _weights(seed)
    last = f"language_model.model.layers.{NUM_LAYERS - 1}."
    tail = {n for n in weights.tensors if n.startswith(last) or n.endswith("model.norm.weight")}
    index: dict[str, str] = {}
    for number, names in ((1, weights.tensors.keys() - tail), (2, tail)):
        shard = f"model-{number:05d}-of-00002.safetensors"
        tensors = {name: weights.tensors[name] for name in sorted(names)}
        write_safetensors(directory / shard, tensors, {"format": "pt"})
        index.update(dict.fromkeys(tensors, shard))
    _write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {}, "weight_map": dict(sorted(index.items()))},
    )


def make_tokenizer() -> dict[str, Any]:
    """Train a byte-fallback BPE in Gemma's style; the content of `tokenizer.json`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    size = VOCABULARY - len(SPECIAL_TOKENS) - 256
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(model["vocab"], key=model["vocab"].get)
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                bos,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<bos>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": model["merges"],
        },
    }


def _weights(seed: int) -> RandomWeights:
    weights = RandomWeights(seed)
    root = "language_model.model."
    # Gemma multiplies embeddings by sqrt(hidden size): this gives them unit variance
    weights.normal(f"{root}embed_tokens.weight", (VOCABULARY, HIDDEN_SIZE), HIDDEN_SIZE**-0.5)
    weights.normal(f"{root}norm.weight", (HIDDEN_SIZE,), 0.05)
    query, key = HEADS * HEAD_DIM, KEY_VALUE_HEADS * HEAD_DIM
    for layer in range(NUM_LAYERS):
        block = f"{root}layers.{layer}."
        # norms multiply by 1 + w
        for norm, mean in (
            ("input_layernorm", 0.0),
            ("post_attention_layernorm", -0.5),
            ("pre_feedforward_layernorm", 0.0),
            ("post_feedforward_layernorm", -0.5),
        ):
            weights.normal(f"{block}{norm}.weight", (HIDDEN_SIZE,), 0.05, mean)
        for name, shape in (
            ("self_attn.q_proj", (query, HIDDEN_SIZE)),
            ("self_attn.k_proj", (key, HIDDEN_SIZE)),
            ("self_attn.v_proj", (key, HIDDEN_SIZE)),
            ("self_attn.o_proj", (HIDDEN_SIZE, query)),
            ("mlp.gate_proj", (INTERMEDIATE_SIZE, HIDDEN_SIZE)),
            ("mlp.up_proj", (INTERMEDIATE_SIZE, HIDDEN_SIZE)),
            ("mlp.down_proj", (HIDDEN_SIZE, INTERMEDIATE_SIZE)),
        ):
            weights.layer(f"{block}{name}", shape, bias=None)
        for norm in ("q_norm", "k_norm"):
            weights.normal(f"{block}self_attn.{norm}.weight", (HEAD_DIM,), 0.05)
    return weights


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
