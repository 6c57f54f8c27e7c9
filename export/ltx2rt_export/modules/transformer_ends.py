"""What runs before and after the transformer blocks (spec/transformer.md §6, §7, §11, §15).

Adaptive layer norm runs on the distinct timesteps only; tokens refer to them by index.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltx2rt_export.modules.adaln import (
    AdaLayerNormSingle,
    gather_rows,
    modulate,
    sinusoid_frequencies,
    timestep_features,
)
from ltx2rt_export.modules.transformer_block import OTHER, StreamModule
from ltx2rt_export.modules.transformer_config import StreamConfig, TransformerConfig

#: per stream: the names of its side of the exchange between the streams
CROSS_ADALN = {
    "video": "av_ca_video_scale_shift_adaln_single",
    "audio": "av_ca_audio_scale_shift_adaln_single",
}
CROSS_GATE = {"video": "av_ca_a2v_gate_adaln_single", "audio": "av_ca_v2a_gate_adaln_single"}


class CaptionProjection(nn.Module):
    """Two linears with tanh-GELU between them (LTX-2 only)."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.linear_1(context), approximate="tanh")
        result: Tensor = self.linear_2(hidden)
        return result


class TransformerHead(StreamModule):
    """Latent tokens, timesteps and contexts to hidden states and modulation rows."""

    frequencies: Tensor

    def __init__(self, config: TransformerConfig, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.outputs = config, outputs
        self.register_buffer("frequencies", sinusoid_frequencies(), persistent=False)
        for stream in config.streams:
            width, prefix = stream.width, stream.prefix
            adaln = AdaLayerNormSingle(width, config.adaln_rows)
            self.add_module(f"{prefix}patchify_proj", nn.Linear(stream.in_channels, width))
            self.add_module(f"{prefix}adaln_single", adaln)
            if stream.prompt_adaln:
                self.add_module(f"{prefix}prompt_adaln_single", AdaLayerNormSingle(width, 2))
            if stream.caption_channels:
                projection = CaptionProjection(stream.caption_channels, width)
                self.add_module(f"{prefix}caption_projection", projection)
            if config.modalities == "av":
                self.add_module(CROSS_ADALN[stream.name], AdaLayerNormSingle(width, 4))
                self.add_module(CROSS_GATE[stream.name], AdaLayerNormSingle(width, 1))
        if config.keyframes_embedding:
            width = config.streams[0].width
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.empty(1, width))

    def forward(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Run on the tensors of `transformer.head_inputs`; returns those of `head_outputs`."""
        out: dict[str, Tensor] = {}
        for stream in self.config.streams:
            out |= self._stream(stream, tensors)
        return tuple(out[name] for name in self.outputs)

    def _features(self, values: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
        scaled = values.float() * self.config.timestep_scale
        if factor != 1:
            scaled = scaled * factor
        return timestep_features(scaled, self.frequencies).to(dtype)

    def _stream(self, stream: StreamConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name, config = stream.name, self.config
        latent = tensors[f"{name}_latent"]
        context = tensors[f"{name}_context"]
        steps = self._features(tensors[f"{name}_timestep_values"], latent.dtype)
        hidden = self.of(stream, "patchify_proj")(latent)
        if name == "video" and config.keyframes_embedding:
            marked = (tensors["video_keyframes_mask"] > 0).to(latent.dtype)
            hidden = hidden + marked * self.keyframes_abs_pos_embedding
        rows, embedded = self.of(stream, "adaln_single")(steps)
        if stream.caption_channels:
            context = self.of(stream, "caption_projection")(context)
        else:
            context = context.clone()
        out = {
            f"{name}_hidden": hidden,
            f"{name}_adaln": rows,
            f"{name}_embedded_timestep": embedded,
            f"{name}_text_context": context,
        }
        if stream.prompt_adaln:
            sigma = self._features(tensors[f"{name}_sigma"], latent.dtype)
            out[f"{name}_prompt_adaln"] = self.of(stream, "prompt_adaln_single")(sigma)[0]
        if config.modalities == "av":
            factor = config.cross_timestep_scale / config.timestep_scale
            sigma = self._features(tensors[f"{OTHER[name]}_sigma"], latent.dtype, factor)
            out[f"{name}_cross_adaln"] = self.get_submodule(CROSS_ADALN[name])(steps)[0]
            out[f"{name}_cross_gate"] = self.get_submodule(CROSS_GATE[name])(sigma)[0]
        return out


class TransformerTail(StreamModule):
    """Hidden states to velocities."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        for stream in config.streams:
            table = nn.Parameter(torch.empty(2, stream.width))
            self.register_parameter(f"{stream.prefix}scale_shift_table", table)
            projection = nn.Linear(stream.width, stream.out_channels)
            self.add_module(f"{stream.prefix}proj_out", projection)

    def forward(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Run on the tensors of `transformer.tail_inputs`; returns one velocity a stream."""
        velocities = []
        for stream in self.config.streams:
            name = stream.name
            embedded = tensors[f"{name}_embedded_timestep"]
            table = getattr(self, f"{stream.prefix}scale_shift_table").to(embedded.dtype)
            index = tensors[f"{name}_timestep_index"]
            shift, scale = (gather_rows(embedded + table[r], index) for r in (0, 1))
            normed = _layer_norm(tensors[f"{name}_hidden"], self.config.eps)
            velocities.append(self.of(stream, "proj_out")(modulate(normed, scale, shift)))
        return tuple(velocities)


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, float32 inside (plain operators: no constant scale)."""
    wide = x.float()
    centered = wide - wide.mean(dim=-1, keepdim=True)
    normed = centered * torch.rsqrt(centered.square().mean(dim=-1, keepdim=True) + eps)
    return normed.to(x.dtype)
