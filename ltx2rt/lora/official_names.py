"""Official names of every linear layer that a LoRA of this model family may change.

Adapter files of some trainers flatten names (`lora_unet_transformer_blocks_0_attn1_to_out_0`): they
are found by flattening all official names the same way, never by rules (spec/lora.md §1).
"""

from __future__ import annotations

from functools import cache

from ltx2rt.lora.adapter import flat_names, official_module

#: no published model has more layers: 48 blocks, 8 connector blocks
_MAX_BLOCKS, _MAX_CONNECTOR_BLOCKS = 64, 16
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_FEED_FORWARD = ("net.0.proj", "net.2")
_EMBEDDER = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_BLOCK = (
    *(
        f"{attention}.{linear}"
        for attention in (
            "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn",
            "video_to_audio_attn",
        )
        for linear in _ATTENTION
    ),
    *(f"{name}.{linear}" for name in ("ff", "audio_ff") for linear in _FEED_FORWARD),
)  # fmt: skip
_CONNECTOR_BLOCK = (
    *(f"attn1.{linear}" for linear in _ATTENTION),
    *(f"ff.{linear}" for linear in _FEED_FORWARD),
)
_OTHERS = (
    "patchify_proj", "audio_patchify_proj", "proj_out", "audio_proj_out",
    *(
        f"{name}.{linear}"
        for name in ("caption_projection", "audio_caption_projection")
        for linear in ("linear_1", "linear_2")
    ),
    *(
        f"{name}.{linear}"
        for name in (
            "adaln_single", "audio_adaln_single", "prompt_adaln_single",
            "audio_prompt_adaln_single", "av_ca_video_scale_shift_adaln_single",
            "av_ca_audio_scale_shift_adaln_single", "av_ca_a2v_gate_adaln_single",
            "av_ca_v2a_gate_adaln_single",
        )
        for linear in _EMBEDDER
    ),
    *(
        f"text_embedding_projection.{name}"
        for name in ("aggregate_embed", "video_aggregate_embed", "audio_aggregate_embed")
    ),
)  # fmt: skip


@cache
def known_modules() -> frozenset[str]:
    """All official names, of all generations."""
    blocks = (f"transformer_blocks.{i}.{linear}" for i in range(_MAX_BLOCKS) for linear in _BLOCK)
    connectors = (
        f"{connector}_embeddings_connector.transformer_1d_blocks.{i}.{linear}"
        for connector in ("video", "audio")
        for i in range(_MAX_CONNECTOR_BLOCKS)
        for linear in _CONNECTOR_BLOCK
    )
    return frozenset((*blocks, *connectors, *_OTHERS))


@cache
def _flat() -> dict[str, str]:
    return flat_names(sorted(known_modules()))


def official_name(module: str) -> str | None:
    """The official name of a module as an adapter file names it; None when there is none."""
    return official_module(module, known_modules(), _flat())
