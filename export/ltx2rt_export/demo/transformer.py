"""The demo's transformer, connectors and text projections (LTX-2.3 structure, tiny widths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ltx2rt_export.demo.random_weights import RandomWeights

LATENT_CHANNELS = 128
ADALN_ROWS = 9
REGISTERS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTransformer:
    """Sizes: `heads` heads of `head_dim` (video) and `audio_head_dim` (audio)."""

    num_layers: int = 3
    connector_layers: int = 2
    heads: int = 4
    head_dim: int = 16
    audio_head_dim: int = 8

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def audio_width(self) -> int:
        return self.heads * self.audio_head_dim

    def config(self, caption_channels: int) -> dict[str, Any]:
        """The `transformer` object of the checkpoint's metadata."""
        return {
            "_class_name": "AVTransformer3DModel",
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "attention_head_dim": self.head_dim,
            "attention_type": "default",
            "caption_channels": caption_channels,
            "cross_attention_dim": self.width,
            "double_self_attention": False,
            "dropout": 0.0,
            "in_channels": LATENT_CHANNELS,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-06,
            "norm_num_groups": 32,
            "num_attention_heads": self.heads,
            "num_embeds_ada_norm": 1000,
            "num_layers": self.num_layers,
            "num_vector_embeds": None,
            "only_cross_attention": False,
            "cross_attention_norm": True,
            "out_channels": LATENT_CHANNELS,
            "upcast_attention": False,
            "use_linear_projection": False,
            "qk_norm": "rms_norm",
            "standardization_norm": "rms_norm",
            "positional_embedding_type": "rope",
            "positional_embedding_theta": 10000.0,
            "positional_embedding_max_pos": [20, 2048, 2048],
            "timestep_scale_multiplier": 1000,
            "av_ca_timestep_scale_multiplier": 1000.0,
            "causal_temporal_positioning": True,
            "audio_num_attention_heads": self.heads,
            "audio_attention_head_dim": self.audio_head_dim,
            "use_audio_video_cross_attention": True,
            "share_ff": False,
            "audio_out_channels": LATENT_CHANNELS,
            "audio_cross_attention_dim": self.audio_width,
            "audio_positional_embedding_max_pos": [20],
            "av_cross_ada_norm": True,
            "use_embeddings_connector": True,
            "connector_positional_embedding_max_pos": [4096],
            "connector_num_learnable_registers": REGISTERS,
            "connector_norm_output": True,
            "use_middle_indices_grid": True,
            "rope_type": "split",
            "frequencies_precision": "float64",
            "connector_attention_head_dim": self.head_dim,
            "connector_num_attention_heads": self.heads,
            "connector_num_layers": self.connector_layers,
            "apply_gated_attention": True,
            "connector_apply_gated_attention": True,
            "caption_projection_first_linear": False,
            "caption_projection_second_linear": False,
            "caption_proj_input_norm": False,
            "connector_learnable_registers_std": 1,
            "caption_proj_before_connector": True,
            "audio_connector_attention_head_dim": self.audio_head_dim,
            "audio_connector_num_attention_heads": self.heads,
            "cross_attention_adaln": True,
            "text_encoder_norm_type": "per_token_rms",
        }

    def write(self, weights: RandomWeights, caption_features: int) -> None:
        """Add transformer, connectors and projections under their names in a checkpoint.

        Args:
            caption_features: hidden size of Gemma times its number of hidden states.
        """
        root = "model.diffusion_model."
        for stream, width in (("", self.width), ("audio_", self.audio_width)):
            weights.layer(f"{root}{stream}patchify_proj", (width, LATENT_CHANNELS))
            weights.layer(f"{root}{stream}proj_out", (LATENT_CHANNELS, width), gain=0.8)
            table = f"{root}{stream}scale_shift_table"
            weights.normal(table, (2, width), 0.1, keep_float32=True)
            _adaln(weights, f"{root}{stream}adaln_single", width, ADALN_ROWS)
            _adaln(weights, f"{root}{stream}prompt_adaln_single", width, 2)
            modality = stream.removesuffix("_") or "video"
            _adaln(weights, f"{root}av_ca_{modality}_scale_shift_adaln_single", width, 4)
            gate = "a2v" if modality == "video" else "v2a"
            _adaln(weights, f"{root}av_ca_{gate}_gate_adaln_single", width, 1)
            self._connector(weights, f"{root}{modality}_embeddings_connector.", width)
            projection = f"text_embedding_projection.{modality}_aggregate_embed"
            weights.layer(projection, (width, caption_features))
        for layer in range(self.num_layers):
            self._block(weights, f"{root}transformer_blocks.{layer}.")

    def _block(self, weights: RandomWeights, block: str) -> None:
        video, audio = self.width, self.audio_width
        for name, query, context, inner in (
            ("attn1", video, video, video),
            ("attn2", video, video, video),
            ("audio_attn1", audio, audio, audio),
            ("audio_attn2", audio, audio, audio),
            ("audio_to_video_attn", video, audio, audio),
            ("video_to_audio_attn", audio, video, audio),
        ):
            # attention to text is sharper, so that prompts make a visible difference
            sharpness = 2.5 if name.endswith("attn2") else 1.0
            _attention(weights, f"{block}{name}", query, context, inner, self.heads, sharpness)
        for stream, width in (("", video), ("audio_", audio)):
            _feed_forward(weights, f"{block}{stream}ff", width)
            # a table row is shift, scale or gate: moderate values keep every branch alive
            for table, rows in (
                (f"{stream}scale_shift_table", ADALN_ROWS),
                (f"{stream}prompt_scale_shift_table", 2),
                (f"scale_shift_table_a2v_ca_{stream.removesuffix('_') or 'video'}", 5),
            ):
                weights.normal(f"{block}{table}", (rows, width), 0.3, keep_float32=True)

    def _connector(self, weights: RandomWeights, root: str, width: int) -> None:
        weights.normal(f"{root}learnable_registers", (REGISTERS, width))
        for layer in range(self.connector_layers):
            block = f"{root}transformer_1d_blocks.{layer}."
            _attention(weights, f"{block}attn1", width, width, width, self.heads)
            _feed_forward(weights, f"{block}ff", width)


def _adaln(weights: RandomWeights, name: str, width: int, rows: int) -> None:
    weights.layer(f"{name}.emb.timestep_embedder.linear_1", (width, 256))
    weights.layer(f"{name}.emb.timestep_embedder.linear_2", (width, width))
    weights.layer(f"{name}.linear", (rows * width, width), gain=0.3)


def _attention(
    weights: RandomWeights,
    name: str,
    query: int,
    context: int,
    inner: int,
    heads: int,
    sharpness: float = 1.0,
) -> None:
    for part, shape in (
        ("to_q", (inner, query)),
        ("to_k", (inner, context)),
        ("to_v", (inner, context)),
        ("to_out.0", (query, inner)),
        ("to_gate_logits", (heads, query)),
    ):
        weights.layer(f"{name}.{part}", shape)
    weights.normal(f"{name}.q_norm.weight", (inner,), 0.1, sharpness)
    weights.normal(f"{name}.k_norm.weight", (inner,), 0.1, sharpness)


def _feed_forward(weights: RandomWeights, name: str, width: int) -> None:
    weights.layer(f"{name}.net.0.proj", (4 * width, width))
    weights.layer(f"{name}.net.2", (width, 4 * width))
