"""Parts of LTX-2.5 as diffusers saves them, whose queries, keys and values it keeps apart where the
official files have them in one tensor: the diffusion decoder and the duration head.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ltx2rt.errors import CheckpointError
from ltx2rt.weights.codecs.stored import ROWS
from ltx2rt.weights.safetensors import Encoding, TensorEntry

#: part -> official name of (a tensor's own name; what the joined ones are called)
_DECODER = (
    (re.compile(r"\.attn\.to_out\.0\."), ".attn.proj."),
    (re.compile(r"\.attn\.norm_(q|k)\."), r".attn.\1_norm."),
    (re.compile(r"\.timestep_embedder\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.timestep_embedder\.linear_2\."), ".mlp.2."),
    (re.compile(r"^latents_mean$"), "per_channel_statistics.mean-of-means"),
    (re.compile(r"^latents_std$"), "per_channel_statistics.std-of-means"),
    (re.compile(r"\.attn\.to_q\.(weight|bias)$"), r".attn.qkv.\1"),
)
_HEAD = (
    (re.compile(r"\.to_out\.(weight|bias)$"), r".cross_attn.out_proj.\1"),
    (re.compile(r"\.to_q\.(weight|bias)$"), r".cross_attn.in_proj_\1"),
)
_SPELLINGS = {"diffusion_decoder": ("vae.", _DECODER), "duration_head": ("duration_head.", _HEAD)}
_QUERY = re.compile(r"\.to_q\.")
_REST = re.compile(r"\.to_(k|v)\.")
#: keys of a diffusion decoder's configuration -> those of official metadata's `vae.decoder`
_KEYS = {
    "latent_channels": "in_channels",
    "out_channels": "out_channels",
    "patch_size": "patch_size",
    "decoder_head_dim": "head_dim",
    "decoder_stage_channels": "stage_channels",
    "decoder_stage_depths": "stage_depths",
    "decoder_stage_kernels": "stage_kernels",
    "decoder_stage5_kernel": "stage5_kernel",
    "decoder_t_emb_dim": "t_emb_dim",
    "decoder_timestep_scale_multiplier": "timestep_scale_multiplier",
    "decoder_num_inference_steps": "default_num_inference_steps",
}


def joined_tensors(part: str, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """A part's tensors under official names, those of queries, keys and values as one.

    Raises:
        CheckpointError: some of the three are missing, or do not fit each other.
    """
    prefix, spellings = _SPELLINGS[part]
    found: dict[str, TensorEntry] = {}
    for name, entry in tensors.items():
        if _REST.search(name):
            continue
        official = name
        for pattern, spelled in spellings:
            official = pattern.sub(spelled, official)
        official = prefix + official
        if _QUERY.search(name):
            entry = _joined([_named(tensors, name, letter) for letter in "qkv"])
        found[official] = dataclasses.replace(entry, name=official)
    return found


def _named(tensors: Mapping[str, TensorEntry], query: str, letter: str) -> TensorEntry:
    name = _QUERY.sub(f".to_{letter}.", query)
    if name not in tensors:
        raise CheckpointError(
            f"{tensors[query].path} has {query} but no {name}: download it again."
        )
    return tensors[name]


def _joined(rows: list[TensorEntry]) -> TensorEntry:
    """Tensors one below another as one."""
    first, *others = rows
    if any((e.dtype, e.shape) != (first.dtype, first.shape) for e in others):
        raise CheckpointError(
            f"{first.path} is damaged: {', '.join(e.name for e in rows)} differ in dtype or shape."
        )
    encoding = Encoding(
        format=ROWS,
        shape=first.shape,
        group=1,
        parts={f"{ROWS}_{number}": entry for number, entry in enumerate(others, 1)},
    )
    shape = (len(rows) * first.shape[0], *first.shape[1:])
    return dataclasses.replace(first, shape=shape, encoding=encoding)


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `vae` object of official metadata for a diffusion decoder; {} where nothing is said."""
    if not config:
        return {}
    own = {official: config[key] for key, official in _KEYS.items() if key in config}
    strides = config.get("decoder_upsample_strides", ())
    reductions = config.get("decoder_upsample_channel_reductions", ())
    if strides:
        own["upsamples"] = [list(pair) for pair in zip(strides, reductions, strict=True)]
    return {
        "_class_name": "CausalDiffusionVAE",
        "model_output_type": config.get("decoder_model_output_type", "x0"),
        "decoder": {"_class_name": "NADiffusionDecoder", "resampler_kind": "linear", **own},
    }


def head_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `duration_head` object of official metadata."""
    keys = {"pooler_hidden_dim": "pooler_hidden_dim", "num_queries": "num_queries",
            "num_pooler_heads": "num_pooler_heads", "mlp_hidden_dim": "mlp_hidden"}  # fmt: skip
    return {official: config[key] for key, official in keys.items() if key in config}
