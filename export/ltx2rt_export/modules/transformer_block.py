"""The transformer block (spec/transformer.md §6.3 and §9 to §14).

The streams differ in names and sizes alone, so each rule is written once, for a `StreamConfig`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltx2rt_export.modules.adaln import gather_rows, modulate
from ltx2rt_export.modules.attention import Attention, FeedForward, rms_norm
from ltx2rt_export.modules.transformer_config import StreamConfig, TransformerConfig

OTHER = {"video": "audio", "audio": "video"}

#: per stream: the names of its side of the exchange between the streams
CROSS_TABLE = {
    "video": "scale_shift_table_a2v_ca_video",
    "audio": "scale_shift_table_a2v_ca_audio",
}
CROSS_ATTENTION = {"video": "audio_to_video_attn", "audio": "video_to_audio_attn"}


class StreamModule(nn.Module):
    """A module that finds a stream's submodules by their official names."""

    def of(self, stream: StreamConfig, name: str) -> nn.Module:
        return self.get_submodule(stream.prefix + name)


class TransformerBlock(StreamModule):
    """One of the blocks: self-attention, text attention, exchange between the streams, FFN."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        heads, eps, gated = config.heads, config.eps, config.gated
        for stream in config.streams:
            width, prefix, head_dim = stream.width, stream.prefix, stream.head_dim
            for name, context_dim in (("attn1", width), ("attn2", stream.context_dim)):
                attention = Attention(width, context_dim, heads, head_dim, width, eps, gated=gated)
                self.add_module(prefix + name, attention)
            self.add_module(f"{prefix}ff", FeedForward(width, bias=stream.ff_bias))
            self._table(f"{prefix}scale_shift_table", config.adaln_rows, width)
            if config.text_adaln:
                self._table(f"{prefix}prompt_scale_shift_table", 2, width)
        if config.modalities == "av":
            for stream, other in zip(config.streams, reversed(config.streams), strict=True):
                self._table(CROSS_TABLE[stream.name], 5, stream.width)
                inner = (heads, config.cross_head_dim)
                attention = Attention(
                    stream.width, other.width, *inner, stream.width, eps, gated=gated
                )
                self.add_module(CROSS_ATTENTION[stream.name], attention)

    def _table(self, name: str, rows: int, width: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(rows, width)))

    def forward(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Run on the tensors of `transformer.block_inputs`; returns those of `block_outputs`.

        A stream whose `enabled` is 0 leaves as it came, but the other stream still reads it.
        """
        entered = {s.name: tensors[f"{s.name}_hidden"] for s in self.config.streams}
        hidden: dict[str, Tensor] = {}
        rows: dict[str, list[Tensor]] = {}
        enabled: dict[str, Tensor] = {}
        for stream in self.config.streams:
            name = stream.name
            rows[name] = self._rows(stream, tensors)
            enabled[name] = tensors[f"{name}_enabled"].reshape(-1, 1, 1) > 0
            attended = self._attend(stream, entered[name], rows[name], tensors)
            hidden[name] = torch.where(enabled[name], attended, entered[name])
        if self.config.modalities == "av":
            hidden = self._exchange(hidden, tensors)
        for stream in self.config.streams:
            name, x = stream.name, hidden[stream.name]
            shift, scale, gate = rows[name][3:6]
            normed = modulate(rms_norm(x, self.config.eps), scale, shift)
            x = x + self.of(stream, "ff")(normed) * gate
            hidden[name] = torch.where(enabled[name], x, entered[name])
        return tuple(hidden.values())

    def _rows(self, stream: StreamConfig, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Modulation of every token, `[B, T, D]` a row: table plus AdaLN, then gathered."""
        adaln = tensors[f"{stream.name}_adaln"]
        table = getattr(self, f"{stream.prefix}scale_shift_table").to(adaln.dtype)
        index = tensors[f"{stream.name}_timestep_index"]
        return [gather_rows(adaln[:, r] + table[r], index) for r in range(self.config.adaln_rows)]

    def _attend(
        self, stream: StreamConfig, x: Tensor, rows: list[Tensor], tensors: dict[str, Tensor]
    ) -> Tensor:
        """Self-attention, then attention to the text."""
        name, eps = stream.name, self.config.eps
        normed = modulate(rms_norm(x, eps), rows[1], rows[0])
        rope = (tensors[f"{name}_rope_cos"], tensors[f"{name}_rope_sin"])
        bias, keep = tensors[f"{name}_attention_bias"], tensors[f"{name}_self_keep"]
        attn1 = self.of(stream, "attn1")
        x = x + attn1(normed, normed, bias, rope_q=rope, rope_k=rope, keep=keep) * rows[2]
        query, context = rms_norm(x, eps), tensors[f"{name}_text_context"]
        bias = tensors[f"{name}_context_bias"]
        attn2 = self.of(stream, "attn2")
        if not self.config.text_adaln:
            x = x + attn2(query, context, bias)
            return x
        table = getattr(self, f"{stream.prefix}prompt_scale_shift_table").to(x.dtype)
        kv = table.unsqueeze(0)
        if stream.prompt_adaln:
            kv = kv + tensors[f"{name}_prompt_adaln"]
        context = modulate(context, kv[:, 1:2], kv[:, 0:1])
        x = x + attn2(modulate(query, rows[7], rows[6]), context, bias) * rows[8]
        return x

    def _exchange(self, hidden: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Attention between the streams; both directions read the states from before.

        The result of a disabled stream is undone at the end of the block.
        """
        normed = {name: rms_norm(x, self.config.eps) for name, x in hidden.items()}
        rows: dict[str, list[Tensor]] = {}
        gates: dict[str, Tensor] = {}
        for name, x in hidden.items():
            table = getattr(self, CROSS_TABLE[name]).to(x.dtype)
            adaln, index = tensors[f"{name}_cross_adaln"], tensors[f"{name}_timestep_index"]
            rows[name] = [gather_rows(adaln[:, r] + table[r], index) for r in range(4)]
            gates[name] = tensors[f"{name}_cross_gate"] + table[4]
        out: dict[str, Tensor] = {}
        for name, x in hidden.items():
            other = OTHER[name]
            first = 0 if name == "video" else 2  # rows of the direction: scale, shift
            query, context = (
                modulate(normed[n], rows[n][first], rows[n][first + 1]) for n in (name, other)
            )
            rope_q, rope_k = (
                (tensors[f"{n}_cross_rope_cos"], tensors[f"{n}_cross_rope_sin"])
                for n in (name, other)
            )
            keep = tensors[f"{other}_to_{name}_keep"].reshape(-1, 1, 1)
            attention = self.get_submodule(CROSS_ATTENTION[name])
            update = attention(query, context, rope_q=rope_q, rope_k=rope_k)
            out[name] = x + update * gates[name] * keep
        return out
