"""Latent upsamplers: spatial x2 and x1.5, temporal x2 (spec/upsampler.md).

Tensors are `[B, C, F, H, W]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ltx2rt.engine import TensorSpec
from ltx2rt.errors import UnsupportedError
from ltx2rt.names import SPATIAL_UPSAMPLER, TEMPORAL_UPSAMPLER
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.shape_ops import depth_to_space, drop_first
from ltx2rt_export.modules.upsampler_config import GROUPS, UpsamplerConfig
from ltx2rt_export.modules.video_vae_blocks import LatentStatistics

GROUP_NORM_EPS = 1e-5


class GroupNorm(nn.Module):
    """Group norm over channels of a group and the whole volume, statistics in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        affine = nn.GroupNorm(GROUPS, channels)  # for its parameters' names and shapes
        self.weight, self.bias = affine.weight, affine.bias

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        wide = x.float().reshape(batch, GROUPS, channels // GROUPS * frames * height * width)
        wide = wide - wide.mean(dim=2, keepdim=True)
        variance = wide.square().mean(dim=2, keepdim=True)
        wide = (wide / (variance + GROUP_NORM_EPS).sqrt()).reshape(
            batch, channels, frames, height, width
        )
        weight, bias = (p.float().reshape(1, -1, 1, 1, 1) for p in (self.weight, self.bias))
        return (wide * weight + bias).to(x.dtype)


class ResBlock(nn.Module):
    """Two normalised convolutions; the activation comes after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = GroupNorm(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = GroupNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.norm1(self.conv1(x)))
        return functional.silu(self.norm2(self.conv2(h)) + x)


def per_frame(network: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D network to every frame."""
    batch, channels, frames, height, width = x.shape
    x = x.transpose(1, 2).contiguous().reshape(batch * frames, channels, height, width)
    x = network(x)
    _, channels, height, width = x.shape
    return x.reshape(batch, frames, channels, height, width).transpose(1, 2)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """`[N, C*r*r, H, W]` -> `[N, C, H*r, W*r]` with r = `factor`; index (c*r + row)*r + column."""
    count, channels, height, width = x.shape
    channels = channels // factor**2
    x = (
        x.reshape(count * channels, factor, factor, height, width)
        .permute(0, 3, 1, 4, 2)
        .contiguous()
    )
    return x.reshape(count, channels, height * factor, width * factor)


class BlurDown(nn.Module):
    """Binomial 5x5 blur of every channel alone, with a stride; the kernel is a stored tensor."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.kernel = nn.Parameter(nn.Conv2d(1, 1, 5).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        x = x.reshape(count * channels, 1, height, width)
        x = functional.conv2d(x, self.kernel, stride=self.stride, padding=2)
        return x.reshape(count, channels, x.shape[2], x.shape[3])


class PlainShuffle(nn.Sequential):
    """Spatial x2: one convolution named `0`, then pixel shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4 * channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self[0](x), 2)


class RationalShuffle(nn.Module):
    """Spatial x numerator/denominator: up by pixel shuffle, down by a strided blur."""

    def __init__(self, channels: int, scale: tuple[int, int]) -> None:
        super().__init__()
        self.numerator, denominator = scale
        self.conv = nn.Conv2d(channels, self.numerator**2 * channels, 3, padding=1)
        self.blur_down = BlurDown(denominator) if denominator > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_shuffle(self.conv(x), self.numerator)
        return x if self.blur_down is None else self.blur_down(x)


class TemporalShuffle(nn.Sequential):
    """Temporal x2: one convolution named `0`, interleave into time, drop the first frame."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv3d(channels, 2 * channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = drop_first(depth_to_space(self[0](x), 2, 1, 1))
        return result


class LatentUpsampler(nn.Module):
    """Normalised latent in, normalised latent out; without statistics the bare network (`raw`)."""

    def __init__(self, config: UpsamplerConfig, *, raw: bool = False) -> None:
        super().__init__()
        mid = config.mid_channels
        self.temporal = config.kind == "temporal"
        self.initial_conv = nn.Conv3d(config.channels, mid, 3, padding=1)
        self.initial_norm = GroupNorm(mid)
        self.res_blocks = nn.ModuleList(ResBlock(mid) for _ in range(config.num_blocks))
        self.upsampler: nn.Module
        if self.temporal:
            self.upsampler = TemporalShuffle(mid)
        elif config.kind == "rational":
            self.upsampler = RationalShuffle(mid, config.scale)
        else:
            self.upsampler = PlainShuffle(mid)
        self.post_upsample_res_blocks = nn.ModuleList(
            ResBlock(mid) for _ in range(config.num_blocks)
        )
        self.final_conv = nn.Conv3d(mid, config.channels, 3, padding=1)
        self.per_channel_statistics = None if raw else LatentStatistics(config.channels)

    def forward(self, video_latent: Tensor) -> tuple[Tensor]:
        x = video_latent
        if self.per_channel_statistics is not None:
            x = self.per_channel_statistics.denormalize(x)
        x = functional.silu(self.initial_norm(self.initial_conv(x)))
        for block in self.res_blocks:
            x = block(x)
        x = self.upsampler(x) if self.temporal else per_frame(self.upsampler, x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        x = self.final_conv(x)
        if self.per_channel_statistics is not None:
            x = self.per_channel_statistics.normalize(x)
        return (x,)


def spatial_upsampler(
    config: Mapping[str, Any], tensors: TensorIndex, statistics: TensorIndex | None
) -> Component:
    """The spatial upsampler of a file, x2 or x1.5.

    Args:
        config: the file's `config` metadata; may be empty.
        tensors: the file's tensors.
        statistics: `per_channel_statistics.*` of the video VAE in use; None: the bare network.

    Raises:
        CheckpointError: tensors are missing or do not fit.
        UnsupportedError: the file is a temporal upsampler or another variant.
    """
    return _component(SPATIAL_UPSAMPLER, config, tensors, statistics)


def temporal_upsampler(
    config: Mapping[str, Any], tensors: TensorIndex, statistics: TensorIndex | None
) -> Component:
    """The temporal x2 upsampler of a file; arguments and errors as in `spatial_upsampler`."""
    return _component(TEMPORAL_UPSAMPLER, config, tensors, statistics)


def _component(
    name: str, config: Mapping[str, Any], tensors: TensorIndex, statistics: TensorIndex | None
) -> Component:
    parsed = UpsamplerConfig.from_checkpoint(config, tensors)
    found = TEMPORAL_UPSAMPLER if parsed.kind == "temporal" else SPATIAL_UPSAMPLER
    if found != name:
        raise UnsupportedError(f"the file given as {name} holds a {found}.")
    module = on_meta(lambda: LatentUpsampler(parsed, raw=statistics is None))
    own = {k: tensors[k] for k in tensors if not k.startswith("per_channel_statistics.")}
    shared = {
        k: e for k, e in (statistics or {}).items() if k.startswith("per_channel_statistics.")
    }
    sizes = ("Fl", "Hl", "Wl")
    out = ("Fu", "Hl", "Wl") if parsed.kind == "temporal" else ("Fl", "Hu", "Wu")
    return Component(
        name=name,
        module=module,
        inputs=(TensorSpec("video_latent", "float32", ("B", parsed.channels, *sizes)),),
        outputs=(TensorSpec("upsampled_latent", "float32", ("B", parsed.channels, *out)),),
        weights=match_weights(module, {**own, **shared}, f"the {name.replace('_', ' ')}"),
        trace={"B": 2, "Fl": 3, "Hl": 4, "Wl": 5},
        options={
            "temporal_scale": 2 if parsed.kind == "temporal" else 1,
            "spatial_scale": list(parsed.scale),
            "latent_channels": parsed.channels,
        },
    )
