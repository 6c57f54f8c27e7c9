"""Connectors: features of a prompt to the contexts (spec/text_encoder.md §4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.latents.rope import RopeType, index_positions, rope_tables
from ltx2rt_export.component import TensorIndex
from ltx2rt_export.modules.attention import Attention, FeedForward, Rope, rms_norm
from ltx2rt_export.modules.gemma import MAX_TOKENS

EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """Sizes and options of one connector; the last three are arguments of `ltx2rt.latents.rope`."""

    heads: int
    head_dim: int
    blocks: int
    registers: int
    gated: bool
    ff_bias: bool
    max_pos: tuple[float, ...]
    rope_type: RopeType
    frequencies_precision: str

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @classmethod
    def from_checkpoint(
        cls, config: Mapping[str, Any], tensors: TensorIndex, modality: str
    ) -> ConnectorConfig:
        """Read sizes from the tensors, and from the configuration what tensors do not tell.

        Args:
            config: the `transformer` object of the metadata, or {}.
            tensors: names below `{modality}_embeddings_connector.`.
            modality: `video` or `audio`; audio falls back to the video keys.

        Raises:
            CheckpointError: there is no connector.
            UnsupportedError: values that contradict each other or are unknown; all are listed.
        """
        if "learnable_registers" not in tensors:
            raise CheckpointError(
                f"the {modality} connector is missing: the checkpoint has no "
                f"{modality}_embeddings_connector.learnable_registers; pass a full LTX-2 "
                "checkpoint or the LTX-2.5 transformer file."
            )

        def value(key: str, default: Any) -> Any:
            names = [f"audio_connector_{key}"] if modality == "audio" else []
            known = (config.get(n) for n in (*names, f"connector_{key}"))
            return next((v for v in known if v is not None), default)

        registers, width = tensors["learnable_registers"].shape
        gates = tensors.get("transformer_1d_blocks.0.attn1.to_gate_logits.weight")
        found = [re.match(r"transformer_1d_blocks\.(\d+)\.", name) for name in tensors]
        last = max((int(m[1]) for m in found if m), default=-1)
        heads = value("num_attention_heads", gates.shape[0] if gates else max(width // 128, 1))
        max_pos = config.get("connector_positional_embedding_max_pos", [1] if config else [4096])
        result = cls(
            heads=heads,
            head_dim=value("attention_head_dim", width // heads),
            blocks=value("num_layers", last + 1),
            registers=registers,
            gated=gates is not None,
            ff_bias="transformer_1d_blocks.0.ff.net.2.bias" in tensors,
            max_pos=tuple(float(p) for p in max_pos),
            rope_type=config.get("rope_type", "split"),
            frequencies_precision=config.get(
                "frequencies_precision", "float32" if config else "float64"
            ),
        )
        problems = []
        if result.width != width:
            problems.append(
                f"{heads} heads of {result.head_dim} make a width of {result.width}, "
                f"but learnable_registers has {width}"
            )
        if gates is not None and gates.shape[0] != heads:
            problems.append(f"the gates are for {gates.shape[0]} heads, expected {heads}")
        if len(max_pos) != 1:
            problems.append(
                f"connector_positional_embedding_max_pos is {max_pos!r}, expected one number"
            )
        if result.rope_type not in ("split", "interleaved"):
            problems.append(f"rope_type is {result.rope_type!r}, expected split or interleaved")
        if problems:
            raise UnsupportedError(f"the {modality} connector is not supported", problems)
        return result


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
        cos, sin = rope_tables(
            index_positions(MAX_TOKENS),
            width=config.width,
            heads=config.heads,
            max_pos=config.max_pos,
            rope_type=config.rope_type,
            precision=config.frequencies_precision,
        )
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

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
