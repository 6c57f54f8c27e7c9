"""What a weight file holds: components by tensor name, its kind, and the signs of other models.

Prefixes: spec/checkpoints.md §2. Only headers are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ltx2rt.errors import CheckpointError
from ltx2rt.lora.suffixes import part_of
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.weight_set import Weights

#: kind -> what to call it in a sentence
KINDS: dict[str, str] = {
    "checkpoint": "an LTX-2 checkpoint",
    "transformer": "an LTX-2 transformer",
    "video_vae": "a video VAE",
    "audio_vae": "an audio VAE",
    "vocoder": "a vocoder",
    "text_encoder": "a Gemma text encoder with projections",
    "text_projection": "text projections or connectors",
    "duration_head": "a duration head",
    "spatial_upsampler": "a spatial upsampler",
    "temporal_upsampler": "a temporal upsampler",
    "lora": "a LoRA",
    "gemma": "Gemma weights",
    "latents": "latents of a clip",
    "embeddings": "text contexts",
}

#: the tensor that holds Gemma's SentencePiece model in files for ComfyUI
SPIECE = "spiece_model"

_TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_TRANSFORMER_NAMES = re.compile(
    r"transformer_blocks\.|(audio_)?(patchify_proj|proj_out|caption_projection)\.|av_ca_"
    r"|(audio_)?(prompt_)?adaln_single\.|(audio_)?scale_shift_table$|keyframes_abs_pos_embedding$"
)
_CONNECTORS = {
    "video_embeddings_connector.": "video_embeddings_connector.",
    "audio_embeddings_connector.": "audio_embeddings_connector.",
    "embeddings_connector.": "video_embeddings_connector.",
}
#: what is no model: files of ltx2rt, and caches of trainers
_LATENTS = re.compile(r"(audio_)?latents_\d+x\d+x\d+_\w+|stage_\d+\.(video|audio)")
_CONTEXTS = re.compile(r"video_context|video_prompt_embeds_\w+")

_GEMMA_NAMES = re.compile(
    r"(model\.)?(language_model|vision_tower|vision_model|vision_embedder|embed_vision|embed_audio"
    r"|multi_modal_projector|audio_projector)\.|model\.(embed_tokens|layers|norm)\.|lm_head\."
)

#: parts of adapters whose names other tensors bear too: the vocoder has an `alpha`
_COMMON_PARTS = {"alpha", "rescale"}

#: other models: pattern of a tensor name -> model. The first match names the model.
_OTHERS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)input_blocks\.0\.0\.", "Stable Diffusion (1.x, 2.x or XL)"),
    (r"(^|\.)joint_blocks\.0\.", "Stable Diffusion 3"),
    (r"(^|\.)individual_token_refiner\.|(^|\.)txt_in\.c_embedder\.", "HunyuanVideo"),
    (r"(^|\.)(double_blocks|single_blocks)\.0\.", "Flux"),
    (r"(^|\.)transformer_blocks\.0\.img_mod\.", "Qwen-Image"),
    (r"(^|\.)transformer_blocks\.0\.norm1_context\.", "Flux or Stable Diffusion 3 (diffusers)"),
    (r"(^|\.)blocks\.0\.(self_attn|cross_attn)\.q\.", "Wan"),
    (r"(^|\.)blocks\.0\.attn\.qkv_x\.", "Mochi"),
    (r"(^|\.)transformer_blocks\.0\.audio_attn1\.norm_q\.", "LTX-2 in the diffusers layout"),
    (r"(^|\.)audio_time_embed\.", "LTX-2 in the diffusers layout"),
    (
        r"(^|\.)transformer_blocks\.0\.attn1\.(q_norm|norm_q)\.",
        "LTX-Video 0.9 or another video-only model",
    ),
    (r"(^|\.)down_blocks\.0\.resnets\.0\.", "a diffusers UNet or VAE"),
    (r"(^|\.)encoder\.block\.0\.layer\.0\.SelfAttention\.", "a T5 text encoder"),
    (r"(^|\.)text_model\.encoder\.layers\.0\.", "a CLIP text encoder"),
    (r"^model\.layers\.0\.self_attn\.", "a language model other than Gemma"),
    (r"^blk\.\d+\.", "a language model of llama.cpp (Gemma 3 and 4 are given as --gemma)"),
)


def transformer_prefix(names: Iterable[str]) -> str | None:
    """The prefix of transformer and connector tensors in a file; None when it has neither."""
    found = None
    for name in names:
        for rank, prefix in enumerate(_TRANSFORMER_PREFIXES):
            rest = name[len(prefix) :]
            known = _TRANSFORMER_NAMES.match(rest) or rest.startswith(tuple(_CONNECTORS))
            if name.startswith(prefix) and known:
                found = rank if found is None else min(found, rank)
                break
    return None if found is None else _TRANSFORMER_PREFIXES[found]


def split_components(file: Weights) -> dict[str, dict[str, TensorEntry]]:
    """Sort a file's tensors into components, with the component's prefix removed.

    Returns:
        `transformer`, `connectors`, `text_projection`, `video_vae`, `audio_vae`, `vocoder`,
        `duration_head`, `upsampler`, `gemma`, `assets`, `other` -> name -> entry; no empty ones.
        `text_projection` keeps its full names; video-only connectors get the two-stream name.
    """
    prefix = transformer_prefix(file)
    is_upsampler = "initial_conv.weight" in file
    has_bare_vae = "per_channel_statistics.mean-of-means" in file
    parts: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in file.items():
        part, rest = _component(name, prefix, is_upsampler, has_bare_vae)
        parts.setdefault(part, {})[rest] = entry
    return parts


def _component(
    name: str, prefix: str | None, is_upsampler: bool, has_bare_vae: bool
) -> tuple[str, str]:
    for part in ("audio_vae", "vocoder", "duration_head"):
        if name.startswith(f"{part}."):
            return part, name[len(part) + 1 :]
    if name.startswith("text_embedding_projection."):
        return "text_projection", name
    if name.startswith("vae."):
        return "video_vae", name[4:]
    if name in ("tokenizer_json", SPIECE) or name.startswith("hf_asset__"):
        return "assets", name
    if prefix is not None and name.startswith(prefix):
        rest = name[len(prefix) :]
        for given, official in _CONNECTORS.items():
            if rest.startswith(given):
                return "connectors", official + rest[len(given) :]
        if prefix or _TRANSFORMER_NAMES.match(rest):
            return "transformer", rest
    if is_upsampler:
        return "upsampler", name
    if has_bare_vae and name.startswith(("encoder.", "decoder.", "per_channel_statistics.")):
        return "video_vae", name
    return ("gemma" if _GEMMA_NAMES.match(name) else "other"), name


def detect_kind(file: Weights) -> str:
    """Name what a file is: a key of `KINDS`.

    Raises:
        CheckpointError: it belongs to another model, or is not recognised.
    """
    if is_lora(file):
        return "lora"
    for kind, pattern in (("latents", _LATENTS), ("embeddings", _CONTEXTS)):
        if any(pattern.fullmatch(name) for name in file):
            return kind
    parts = split_components(file)
    transformer = parts.get("transformer", {})
    if transformer and "audio_patchify_proj.weight" in transformer:
        return "checkpoint" if parts.keys() & {"video_vae", "audio_vae"} else "transformer"
    if transformer or parts.keys() == {"other"}:
        raise CheckpointError(_other_model(file))
    if "gemma" in parts:
        if is_gemma(parts["gemma"]):
            return "text_encoder" if "text_projection" in parts else "gemma"
        raise CheckpointError(_other_model(file))
    for part in ("video_vae", "audio_vae", "vocoder", "duration_head"):
        if part in parts:
            return part
    if "text_projection" in parts or "connectors" in parts:
        return "text_projection"
    if "upsampler" in parts:
        return "temporal_upsampler" if is_temporal(parts["upsampler"]) else "spatial_upsampler"
    raise CheckpointError(_other_model(file))


def is_lora(names: Iterable[str]) -> bool:
    """Whether any name is one of an adapter, of whatever kind."""
    parts = (part_of(name) for name in names)
    return any(part is not None and part.part not in _COMMON_PARTS for part in parts)


def is_gemma(names: Iterable[str]) -> bool:
    """Whether the names are those of (a shard of) Gemma 3 or 4: it alone has sandwich norms."""
    text = [name for name in names if "vision" not in name]
    sandwich = any("feedforward_layernorm" in name for name in text)
    return sandwich or not any(".self_attn." in name for name in text)


def is_temporal(upsampler: Mapping[str, TensorEntry]) -> bool:
    """Whether an upsampler doubles time: its up-convolution is 3-D with twice the channels."""
    conv = upsampler.get("upsampler.0.weight")
    return conv is not None and len(conv.shape) == 5 and conv.shape[0] == 2 * conv.shape[1]


def _other_model(file: Weights) -> str:
    expected = "expected an LTX-2, LTX-2.3 or LTX-2.5 file"
    for pattern, model in _OTHERS:
        if any(re.search(pattern, name) for name in file):
            return f"{file.path} is {model}; {expected} in the official layout."
    if not file:
        return f"{file.path} holds no tensors; {expected}."
    first = ", ".join(repr(name[:60]) for name in list(file)[:3])
    return f"{file.path} is not recognised (its tensors start with {first}); {expected}."
