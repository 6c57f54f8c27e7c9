"""Diffusion video decoder of LTX-2.5 and its three components (spec/diffusion_decoder.md).

`diffusion_features` runs the deterministic stages but the last on the whole latent,
`diffusion_context` the last one, and `diffusion_pixels` denoises patches of pixels given that
context; the latter two also work on tiles. Padding, ghost frames, noise and steps are the runtime's
(`ltx2rt.components.diffusion_decoder`). Inside, tensors are `[B, T, H, W, C]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx2rt.engine import TensorSpec
from ltx2rt.names import DIFFUSION_CONTEXT, DIFFUSION_FEATURES, DIFFUSION_PIXELS
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.diffusion_decoder_config import (
    Cells,
    DiffusionDecoderConfig,
    Stage,
)
from ltx2rt_export.modules.loop_ops import neighborhood_attention, swiglu
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.shape_ops import depth_to_space, drop_first
from ltx2rt_export.modules.video_vae_blocks import LatentStatistics

ROPE_BASE = 10000.0
NORM_EPS = 1e-6
ADALN_ROWS = 7


def rope_split(head_dim: int) -> Cells:
    """Channels of a head that turn with time, row and column (§3)."""
    time = 2 * ((head_dim // 4) // 2)
    if (head_dim - time) // 2 % 2:
        time -= 2
    side = (head_dim - time) // 2
    return time, side, side


class RmsNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """Normalise; `order` permutes the weight as the channels of `x` are permuted."""
        weight = self.weight if order is None else self.weight.index_select(0, order)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + NORM_EPS)
        return wide.to(x.dtype) * weight


class Rope(nn.Module):
    """Tables of one grid: `cos` and `sin`, `[T, H, W, 1, D/2]` float32."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        for axis, size in zip("thw", rope_split(head_dim), strict=True):
            steps = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
            self.register_buffer(axis, (ROPE_BASE**-steps).float(), persistent=False)

    def forward(self, x: Tensor, margin: int = 0) -> tuple[Tensor, Tensor]:
        """Tables of the grid of `x`, with `margin` more columns on both sides."""
        sizes = (x.shape[1], x.shape[2], x.shape[3] + 2 * margin)
        parts = []
        for axis, name in enumerate("thw"):
            index = torch.arange(sizes[axis], dtype=torch.float32, device=x.device)
            angles = index[:, None] * self.get_buffer(name)
            view = [1, 1, 1, 1, -1]
            view[axis] = sizes[axis]
            parts.append(angles.reshape(view).expand(*sizes, 1, angles.shape[-1]))
        angle = torch.cat(parts, dim=-1)
        return angle.cos(), angle.sin()


class Attention(nn.Module):
    """Neighbourhood attention. Channels of q and k are permuted so that RoPE pairs are halves."""

    def __init__(self, channels: int, head_dim: int, kernel: Cells) -> None:
        super().__init__()
        self.heads, self.head_dim, self.kernel = channels // head_dim, head_dim, kernel
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.q_norm = RmsNorm(head_dim)
        self.k_norm = RmsNorm(head_dim)
        order = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
        rows = [h * head_dim + i for h in range(2 * self.heads) for i in order]
        rows += range(2 * channels, 3 * channels)
        self.register_buffer("order", torch.tensor(order, device="cpu"), persistent=False)
        self.register_buffer("rows", torch.tensor(rows, device="cpu"), persistent=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        rows, order = self.get_buffer("rows"), self.get_buffer("order")
        weight, bias = self.qkv.weight.index_select(0, rows), self.qkv.bias.index_select(0, rows)
        parts = functional.linear(x, weight, bias).chunk(3, dim=-1)
        q, k, v = (torch.unflatten(part, -1, (self.heads, self.head_dim)) for part in parts)
        q = _rotate(self.q_norm(q, order) * self.head_dim**-0.5, rope)
        k = _rotate(self.k_norm(k, order), rope)
        out = neighborhood_attention(
            q.permute(0, 4, 1, 2, 3, 5),
            k.permute(0, 4, 1, 2, 3, 5),
            v.permute(0, 4, 1, 2, 3, 5),
            list(self.kernel),
        )
        result: Tensor = self.proj(out.permute(0, 2, 3, 4, 1, 5).flatten(4))
        return result


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope
    even, odd = x.float().chunk(2, dim=-1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = -(-4 * channels // 16) * 16
        self.w_gate = nn.Linear(channels, hidden, bias=False)
        self.w_up = nn.Linear(channels, hidden, bias=False)
        self.w_down = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = swiglu(x, self.w_gate.weight, self.w_up.weight, self.w_down.weight)
        return result


class StageBlock(nn.Module):
    """A block of a deterministic stage."""

    def __init__(self, stage: Stage, head_dim: int) -> None:
        super().__init__()
        self.norm1 = RmsNorm(stage.channels)
        self.attn = Attention(stage.channels, head_dim, stage.kernel)
        self.norm2 = RmsNorm(stage.channels)
        self.mlp = FeedForward(stage.channels)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class Upsample(nn.Module):
    """Linear layer whose channels unpack into cells."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stride = stage.stride
        self.proj = nn.Linear(stage.channels, stage.out_channels * math.prod(stage.stride))

    def forward(self, x: Tensor, *, origin: bool) -> Tensor:
        """Upsample; at the clip's origin the first of doubled frames is dropped."""
        x = depth_to_space(self.proj(x).permute(0, 4, 1, 2, 3), *self.stride)
        if origin and self.stride[0] == 2:
            x = drop_first(x)
        return x.permute(0, 2, 3, 4, 1)


class Stages(nn.Module):
    """Consecutive deterministic stages under their official names, and what comes before."""

    def __init__(self, config: DiffusionDecoderConfig, first: int, last: int) -> None:
        super().__init__()
        chosen = {str(i): config.stages[i] for i in range(first, last)}
        if first == 0:
            self.conv_in = nn.Linear(config.latent_channels, config.stages[0].channels)
        self.det_stages = nn.ModuleDict(
            {
                i: nn.ModuleList(StageBlock(s, config.head_dim) for _ in range(s.depth))
                for i, s in chosen.items()
            }
        )
        self.upsamples = nn.ModuleDict({i: Upsample(s) for i, s in chosen.items()})
        self.rope = Rope(config.head_dim)

    def forward(self, x: Tensor, *, origin: bool) -> Tensor:
        for index, blocks in self.det_stages.items():
            rope = self.rope(x)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x = block(x, rope)
            x = self.upsamples[index](x, origin=origin)
        return x


class Features(nn.Module):
    """`video_latent`, normalised, with its padding and ghost frames -> `features`."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.decoder = Stages(config, 0, len(config.stages) - 1)
        self.per_channel_statistics = LatentStatistics(config.latent_channels)

    def forward(self, video_latent: Tensor) -> tuple[Tensor]:
        x = self.per_channel_statistics.denormalize(video_latent).permute(0, 2, 3, 4, 1)
        return (self.decoder(self.decoder.conv_in(x), origin=True),)


class Context(nn.Module):
    """`features` (or a tile of them) -> `context`; no frame is dropped."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.decoder = Stages(config, len(config.stages) - 1, len(config.stages))

    def forward(self, features: Tensor) -> tuple[Tensor]:
        return (self.decoder(features, origin=False),)


class TimestepEmbedder(nn.Module):
    """Scaled timesteps `[B]` -> embeddings `[B, time_width]`; cosines first."""

    def __init__(self, width: int, frequencies: int) -> None:
        super().__init__()
        half = frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device="cpu") / half
        ladder = torch.exp(-math.log(ROPE_BASE) * steps)
        self.register_buffer("ladder", ladder, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        angles = timestep.float()[:, None] * self.get_buffer("ladder")
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        result: Tensor = self.mlp(waves.to(first.weight.dtype))
        return result


class SharedAdaLn(nn.Module):
    """Timestep embedding -> the modulation rows that all blocks share, `[B, 7, C]`."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, ADALN_ROWS * channels)

    def forward(self, embedding: Tensor) -> Tensor:
        result: Tensor = self.proj(functional.silu(embedding)).unflatten(-1, (ADALN_ROWS, -1))
        return result


class PixelBlock(nn.Module):
    """A block of the diffusion stage (§4); gates are constants of older files (§2).

    Its attention has a border rule of its own along the width: windows stay centred, and beyond the
    first and the last column there are copies of them, half a neighbourhood wide.
    """

    def __init__(self, stage: Stage, head_dim: int, *, gated: bool) -> None:
        super().__init__()
        self.margin = stage.kernel[2] // 2
        self.scale_shift_table = nn.Parameter(torch.empty(ADALN_ROWS, stage.channels))
        self.context_proj = nn.Linear(stage.channels, stage.channels)
        self.norm1 = RmsNorm(stage.channels)
        self.attn = Attention(stage.channels, head_dim, stage.kernel)
        self.norm2 = RmsNorm(stage.channels)
        self.mlp = FeedForward(stage.channels)
        self.gated = gated
        if gated:
            for name in ("gate_msa", "gate_mlp", "gate_ctx"):
                self.register_parameter(name, nn.Parameter(torch.empty(stage.channels)))

    def forward(
        self, x: Tensor, context: Tensor, shared: Tensor, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        """`x`, `context`: `[B, T, H, W, C]`; `rope`: tables of the grid `widened` by `margin`."""
        rows = (shared + self.scale_shift_table)[:, :, None, None, None]
        x = x + self._gate("gate_ctx", self.context_proj(context))
        h = self.norm1(widened(x, self.margin)) * (1 + rows[:, 0]) + rows[:, 1]
        h = self.attn(h, rope).narrow(3, self.margin, x.shape[3])
        x = x + self._gate("gate_msa", h)
        h = self.norm2(x) * (1 + rows[:, 3]) + rows[:, 4]
        return x + self._gate("gate_mlp", self.mlp(h))

    def _gate(self, name: str, branch: Tensor) -> Tensor:
        return branch * getattr(self, name) if self.gated else branch


def widened(x: Tensor, margin: int) -> Tensor:
    """`[B, T, H, W, C]` with `margin` copies of the first and of the last column beside it."""
    columns = torch.arange(x.shape[3] + 2 * margin, device=x.device) - margin
    return x.index_select(3, columns.clamp(0, x.shape[3] - 1))


class PixelStage(nn.Module):
    """The diffusion stage under its official names."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        stage = config.pixels
        patch = config.out_channels * config.patch_size**2
        self.margin = stage.kernel[2] // 2
        self.t_embedder = TimestepEmbedder(config.time_width, config.frequencies)
        self.shared_adaln = SharedAdaLn(config.time_width, stage.channels)
        self.conv_in_x_t = nn.Linear(patch, stage.channels)
        self.diff_blocks = nn.ModuleList(
            PixelBlock(stage, config.head_dim, gated=config.gated) for _ in range(stage.depth)
        )
        self.norm_out = RmsNorm(stage.channels)
        self.conv_out = nn.Linear(stage.channels, patch)
        self.rope = Rope(config.head_dim)

    def forward(self, patches: Tensor, context: Tensor, timestep: Tensor) -> Tensor:
        shared = self.shared_adaln(self.t_embedder(timestep))
        x = self.conv_in_x_t(patches)
        rope = self.rope(x, self.margin)
        for block in self.diff_blocks:
            x = block(x, context, shared, rope)
        result: Tensor = self.conv_out(self.norm_out(x))
        return result


class Pixels(nn.Module):
    """`noisy_patches`, `context`, `timestep` in (0, 1] -> `predicted_patches`."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.decoder = PixelStage(config)
        self.timestep_scale = config.timestep_scale

    def forward(self, noisy_patches: Tensor, context: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.decoder(noisy_patches, context, timestep * self.timestep_scale),)


def diffusion_features(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """Component `diffusion_features`.

    Args:
        config: the `vae` object of the metadata.
        tensors: the VAE's tensors, `vae.` removed.

    Raises:
        CheckpointError: tensors are missing or do not fit.
        UnsupportedError: the configuration is not one of the LTX-2.5 family.
    """
    parsed = DiffusionDecoderConfig.from_checkpoint(config, tensors)
    module = on_meta(lambda: Features(parsed))
    width = parsed.stages[-1].channels
    return Component(
        name=DIFFUSION_FEATURES,
        module=module,
        inputs=(_spec("video_latent", "B", parsed.latent_channels, "Fl", "Hl", "Wl"),),
        outputs=(_spec("features", "B", "Fs", "Hs", "Ws", width),),
        weights=match_weights(module, tensors, "the diffusion decoder"),
        trace=_trace(("Fl", "Hl", "Wl"), parsed.min_latent_cells),
        options=_options(parsed),
    )


def diffusion_context(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """Component `diffusion_context`; arguments and errors: `diffusion_features`."""
    parsed = DiffusionDecoderConfig.from_checkpoint(config, tensors)
    module = on_meta(lambda: Context(parsed))
    stage = parsed.stages[-1]
    return Component(
        name=DIFFUSION_CONTEXT,
        module=module,
        inputs=(_spec("features", "B", "Fs", "Hs", "Ws", stage.channels),),
        outputs=(_spec("context", "B", "F", "Hc", "Wc", stage.out_channels),),
        weights=match_weights(module, tensors, "the diffusion decoder"),
        trace=_trace(("Fs", "Hs", "Ws"), stage.kernel),
    )


def diffusion_pixels(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """Component `diffusion_pixels`; arguments and errors: `diffusion_features`.

    A patch is `patch_size` x `patch_size` pixels of one frame, channels c*s^2 + column*s + row.
    """
    parsed = DiffusionDecoderConfig.from_checkpoint(config, tensors)
    module = on_meta(lambda: Pixels(parsed))
    patch = parsed.out_channels * parsed.patch_size**2
    grid = ("B", "F", "Hc", "Wc")
    return Component(
        name=DIFFUSION_PIXELS,
        module=module,
        inputs=(
            _spec("noisy_patches", *grid, patch),
            _spec("context", *grid, parsed.pixels.channels),
            _spec("timestep", "B"),
        ),
        outputs=(_spec("predicted_patches", *grid, patch),),
        weights=match_weights(module, tensors, "the diffusion decoder"),
        trace=_trace(("F", "Hc", "Wc"), parsed.pixels.kernel),
        options={"float32_inputs": ["timestep"]},
    )


def _spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def _trace(symbols: tuple[str, ...], least: Cells) -> dict[str, int]:
    """Sizes for tracing that also run: no axis is shorter than its neighbourhood."""
    sizes = (max(n, 2) + extra for n, extra in zip(least, (1, 3, 2), strict=True))
    return {"B": 2, **dict(zip(symbols, sizes, strict=True))}


def _options(config: DiffusionDecoderConfig) -> dict[str, Any]:
    """Facts for the runtime; `ltx2rt.components.decoder_tiles.DecoderOptions` reads them."""
    last, pixels = config.stages[-1], config.pixels
    return {
        "scale_factors": dict(zip(("time", "height", "width"), config.scale_factors, strict=True)),
        "latent_channels": config.latent_channels,
        "patch_size": config.patch_size,
        "pixel_channels": pixels.channels,
        "border_patches": pixels.kernel[2] // 2,
        "feature_channels": last.channels,
        "steps": config.steps,
        "prediction": config.prediction,
        "ghost_frames": config.ghost_frames,
        "min_latent_cells": list(config.min_latent_cells),
        "feature_stride": list(last.stride),
        "min_feature_cells": [
            max(k, -(-p // s))
            for k, p, s in zip(last.kernel, pixels.kernel, last.stride, strict=True)
        ],
        "halo_feature_cells": [
            max(last.depth * (k // 2), -(-pixels.depth * (p // 2) // s))
            for k, p, s in zip(last.kernel, pixels.kernel, last.stride, strict=True)
        ],
    }
