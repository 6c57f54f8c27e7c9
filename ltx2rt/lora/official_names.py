"""Official names of every tensor that an adapter of this model family may change."""

from __future__ import annotations

from functools import cache

from ltx2rt.lora.tensor_names import TensorNames

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


_NORMS = ("q_norm.weight", "k_norm.weight")
_BLOCK_TABLES = (
    "scale_shift_table", "audio_scale_shift_table", "prompt_scale_shift_table",
    "audio_prompt_scale_shift_table", "scale_shift_table_a2v_ca_video",
    "scale_shift_table_a2v_ca_audio",
)  # fmt: skip
_TABLES = ("scale_shift_table", "audio_scale_shift_table", "keyframes_abs_pos_embedding")


@cache
def known_modules() -> frozenset[str]:
    """All linear layers, of all generations."""
    return frozenset(
        (
            *(f"{block}.{linear}" for block in _blocks() for linear in _BLOCK),
            *(f"{block}.{linear}" for block in _connector_blocks() for linear in _CONNECTOR_BLOCK),
            *_OTHERS,
        )
    )


@cache
def known_tensors() -> frozenset[str]:
    """All tensors, of all generations: weights and biases, norms, tables."""
    attentions = {linear.rpartition(".to_q")[0] for linear in _BLOCK if linear.endswith(".to_q")}
    return frozenset(
        (
            *(f"{module}.{field}" for module in known_modules() for field in ("weight", "bias")),
            *(f"{b}.{a}.{norm}" for b in _blocks() for a in attentions for norm in _NORMS),
            *(f"{block}.{table}" for block in _blocks() for table in _BLOCK_TABLES),
            *(f"{block}.attn1.{norm}" for block in _connector_blocks() for norm in _NORMS),
            *(f"{m}_embeddings_connector.learnable_registers" for m in ("video", "audio")),
            *_TABLES,
        )
    )


def _blocks() -> list[str]:
    return [f"transformer_blocks.{i}" for i in range(_MAX_BLOCKS)]


def _connector_blocks() -> list[str]:
    return [
        f"{modality}_embeddings_connector.transformer_1d_blocks.{i}"
        for modality in ("video", "audio")
        for i in range(_MAX_CONNECTOR_BLOCKS)
    ]


@cache
def _names() -> TensorNames:
    return TensorNames(known_tensors())


def official_name(name: str, field: str = "weight") -> str | None:
    """The official name of a tensor as an adapter file names it; see `TensorNames.find`."""
    return _names().find(name, field)
