"""Connectors: features of a prompt to the contexts (spec/text_encoder.md §4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltx2rt_export.modules.attention import Attention, FeedForward, Rope, rms_norm
from ltx2rt_export.modules.connectors_config import ConnectorConfig
from ltx2rt_export.modules.meta import add_table
from ltx2rt_export.modules.tables import Table

EPS = 1e-6


def valid_first(attention_mask: Tensor) -> Tensor:
    """Order that moves valid tokens to the front and keeps their sequence.

    Args:
        attention_mask: `[B, S]` int64, 0 on pads.

    Returns:
        `[B, S]` int64: entry p is the index of the p-th valid token, 0 beyond the last one.
    """
    valid = (attention_mask != 0).long()
    rank = valid.cumsum(dim=1) - 1
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    chosen = (rank[:, None, :] == positions[:, None]) & (valid != 0)[:, None, :]
    return torch.where(chosen, positions, 0).sum(dim=-1)


class ConnectorBlock(nn.Module):
    """Self-attention over all positions, then feed-forward; both with parameter-free pre-norms."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        width = config.width
        self.attn1 = Attention(
            width, width, config.heads, config.head_dim, width, EPS, gated=config.gated
        )
        self.ff = FeedForward(width, bias=config.ff_bias)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        normed = rms_norm(x, EPS)
        x = self.attn1(normed, normed, rope_q=rope, rope_k=rope) + x
        result: Tensor = self.ff(rms_norm(x, EPS)) + x
        return result


class Connector(nn.Module):
    """One modality's connector: valid tokens come first, learnable registers replace the pads."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.learnable_registers = nn.Parameter(torch.empty(config.registers, config.width))
        self.transformer_1d_blocks = nn.ModuleList(
            [ConnectorBlock(config) for _ in range(config.blocks)]
        )
        facts = {
            "width": config.width,
            "heads": config.heads,
            "max_pos": list(config.max_pos),
            "rope_type": config.rope_type,
            "precision": config.frequencies_precision,
        }
        for part, name in enumerate(("cos", "sin")):
            add_table(self, name, Table("connector_rope", {"part": part, **facts}))

    def forward(self, features: Tensor, attention_mask: Tensor) -> Tensor:
        """Connect.

        Args:
            features: `[B, S, W]`; rows of pads are ignored.
            attention_mask: `[B, S]` int64, 0 on pads, which may lie anywhere. S is at most 1024.

        Returns:
            `[B, S, W]`; every position counts.
        """
        batch, length, width = features.shape
        positions = torch.arange(length, device=features.device)
        rows = torch.arange(batch, device=features.device)[:, None] * length
        order = (valid_first(attention_mask) + rows).reshape(-1)
        moved = features.reshape(-1, width).index_select(0, order).reshape(batch, length, width)
        registers = self.learnable_registers.index_select(0, positions % self.config.registers)
        count = (attention_mask != 0).long().sum(dim=1, keepdim=True)
        x = torch.where((positions < count)[:, :, None], moved, registers)
        axis = self.cos.dim() - 2
        rope = (
            self.cos.index_select(axis, positions).to(x.dtype),
            self.sin.index_select(axis, positions).to(x.dtype),
        )
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return rms_norm(x, EPS)
