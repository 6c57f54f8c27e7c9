"""Building blocks of the convolutional video VAE (spec/video_vae.md §2).

Tensors are `[B, C, F, H, W]`; no reshape goes beyond six dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx2rt_export.modules.shape_ops import depth_to_space, drop_first, space_to_depth
from ltx2rt_export.modules.video_vae_config import Padding, Resample

PIXEL_NORM_EPS = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over channels, in float32 (squares overflow float16)."""
    wide = x.float()
    return (wide / torch.sqrt(wide.square().mean(dim=1, keepdim=True) + PIXEL_NORM_EPS)).to(x.dtype)


def one(x: Tensor, dim: int, index: int) -> Tensor:
    """One entry of a dimension, kept as size 1; a slice would have a symbolic size in the trace."""
    return x.select(dim, index).unsqueeze(dim)


class CausalConv3d(nn.Module):
    """3x3x3 convolution; pads time with copies of frames, space with zeros or by reflection."""

    def __init__(
        self, in_channels: int, out_channels: int, padding: Padding, *, causal: bool
    ) -> None:
        super().__init__()
        self.causal = causal
        self.reflect = padding == "reflect"
        space = 0 if self.reflect else 1
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, space, space))

    def forward(self, x: Tensor) -> Tensor:
        first = one(x, 2, 0)
        parts = [first, first, x] if self.causal else [first, x, one(x, 2, -1)]
        x = torch.cat(parts, dim=2)
        if self.reflect:
            x = torch.cat([one(x, 3, 1), x, one(x, 3, -2)], dim=3)
            x = torch.cat([one(x, 4, 1), x, one(x, 4, -2)], dim=4)
        result: Tensor = self.conv(x)
        return result


class ResnetBlock(nn.Module):
    """Pixel norm, SiLU, convolution, twice, plus the input (§2.3)."""

    def __init__(self, channels: int, padding: Padding, *, causal: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, padding, causal=causal)
        self.conv2 = CausalConv3d(channels, channels, padding, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(pixel_norm(x)))
        result: Tensor = x + self.conv2(functional.silu(pixel_norm(h)))
        return result


class ResnetChain(nn.Module):
    """`res_x`: residual blocks in a row (§2.4)."""

    def __init__(self, channels: int, num_layers: int, padding: Padding, *, causal: bool) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResnetBlock(channels, padding, causal=causal) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


def patchify(x: Tensor, size: int) -> Tensor:
    """Pack `size` x `size` pixels into channels: index c*size^2 + column*size + row (§2.8)."""
    result: Tensor = space_to_depth(x.mT, 1, size, size).mT
    return result


def unpatchify(x: Tensor, size: int) -> Tensor:
    """Exact inverse of `patchify`."""
    result: Tensor = depth_to_space(x.mT, 1, size, size).mT
    return result


class Downsample(nn.Module):
    """`compress_*_res`: packed convolution plus group means of the packed input (§2.6)."""

    def __init__(self, channels: int, block: Resample, padding: Padding) -> None:
        super().__init__()
        self.stride = block.stride
        self.out_channels = channels * block.multiplier
        self.group = block.volume // block.multiplier
        self.conv = CausalConv3d(channels, self.out_channels // block.volume, padding, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2:
            x = torch.cat([one(x, 2, 0), x], dim=2)
        skip = space_to_depth(x, *self.stride)
        if self.group > 1:
            batch, _, frames, height, width = skip.shape
            skip = skip.reshape(batch * self.out_channels, self.group, frames, height, width).mean(
                dim=1
            )
            skip = skip.reshape(batch, self.out_channels, frames, height, width)
        result: Tensor = space_to_depth(self.conv(x), *self.stride) + skip
        return result


class Upsample(nn.Module):
    """`compress_*` of the decoder: unpacked convolution; drops the first doubled frame (§2.7)."""

    def __init__(self, channels: int, block: Resample, padding: Padding, *, causal: bool) -> None:
        super().__init__()
        self.stride = block.stride
        self.repeats = block.volume // block.multiplier if block.residual else 0
        self.conv = CausalConv3d(
            channels, channels * block.volume // block.multiplier, padding, causal=causal
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self._expand(self.conv(x))
        if self.repeats:
            out = out + torch.cat([self._expand(x)] * self.repeats, dim=1)
        return out

    def _expand(self, x: Tensor) -> Tensor:
        x = depth_to_space(x, *self.stride)
        return drop_first(x) if self.stride[0] == 2 else x


class LatentStatistics(nn.Module):
    """Per-channel mean and standard deviation of the latent, under their official names (§2.9)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean-of-means", torch.empty(channels))
        self.register_buffer("std-of-means", torch.empty(channels))

    def _view(self, name: str, x: Tensor) -> Tensor:
        return self.get_buffer(name).to(x.dtype).reshape(1, -1, 1, 1, 1)

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self._view("mean-of-means", x)) / self._view("std-of-means", x)

    def denormalize(self, x: Tensor) -> Tensor:
        return x * self._view("std-of-means", x) + self._view("mean-of-means", x)
