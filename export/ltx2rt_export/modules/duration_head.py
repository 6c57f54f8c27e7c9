"""Duration head of LTX-2.5: text contexts to the length of the clip in seconds
(spec/duration_head.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx2rt.engine import TensorSpec
from ltx2rt.names import DURATION_HEAD
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.duration_head_config import DurationHeadConfig
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.transformer_config import Modalities


class CrossAttention(nn.Module):
    """Multi-head attention with packed projections and no mask; tokens are keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        sources = (queries, tokens, tokens)
        q, k, v = (
            torch.unflatten(functional.linear(x, w, b), -1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip(sources, weights, biases, strict=True)
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        heads = torch.softmax(scores, dim=-1) @ v
        result: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return result


class AttentionPooler(nn.Module):
    """Tokens `[B, S, W]` -> learned queries' answers `[B, Q, W]`."""

    def __init__(self, config: DurationHeadConfig) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(config.queries, config.width))
        self.cross_attn = CrossAttention(config.width, config.heads)

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.query_tokens[None].expand(tokens.shape[0], -1, -1)
        result: Tensor = self.cross_attn(queries, tokens)
        return result


class DurationHead(nn.Module):
    """`video_context` and / or `audio_context` -> `seconds` `[B]`."""

    def __init__(self, config: DurationHeadConfig) -> None:
        super().__init__()
        self.streams = tuple(config.streams)
        for name, width in config.streams.items():
            self.add_module(f"{name}_input_proj", nn.Linear(width, config.width))
            embedding = nn.Parameter(torch.empty(config.width))
            self.register_parameter(f"{name}_modality_emb", embedding)
        self.attention_pooler = AttentionPooler(config)
        self.mlp_hidden = nn.Linear(config.queries * config.width, config.hidden)
        self.mlp_out = nn.Linear(config.hidden, 1)

    def forward(self, **contexts: Tensor) -> tuple[Tensor]:
        parts = [
            self.get_submodule(f"{name}_input_proj")(contexts[f"{name}_context"])
            + getattr(self, f"{name}_modality_emb")
            for name in self.streams
        ]
        pooled = self.attention_pooler(torch.cat(parts, dim=1)).flatten(1)
        hidden = functional.gelu(self.mlp_hidden(pooled), approximate="tanh")
        return (self.mlp_out(hidden).squeeze(-1).exp(),)


def duration_head(
    config: Mapping[str, Any], tensors: TensorIndex, modalities: Modalities = "av"
) -> Component:
    """Component `duration_head`.

    Args:
        config: the `duration_head` object of the metadata; may be empty.
        tensors: the head's tensors, `duration_head.` removed.
        modalities: whose contexts it reads.

    Raises:
        CheckpointError, UnsupportedError: see `DurationHeadConfig.from_checkpoint`.
    """
    parsed = DurationHeadConfig.from_checkpoint(config, tensors, modalities)
    module = on_meta(lambda: DurationHead(parsed))
    sizes = {"video": "Sv", "audio": "Sa"}
    return Component(
        name=DURATION_HEAD,
        module=module,
        inputs=tuple(
            TensorSpec(f"{name}_context", "float32", ("B", sizes[name], width))
            for name, width in parsed.streams.items()
        ),
        outputs=(TensorSpec("seconds", "float32", ("B",)),),
        weights=match_weights(module, tensors, "the duration head"),
        trace={"B": 2, **{sizes[name]: 5 + i for i, name in enumerate(parsed.streams)}},
    )
