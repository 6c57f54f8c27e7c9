"""Convolutional video VAE of LTX-2, 2.3 and 2.5 (spec/video_vae.md §3, §4), and its components.

The encoder also serves the LTX-2.5 diffusion VAE, whose decoder is another network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ltx2rt.engine import TensorSpec
from ltx2rt.names import VIDEO_DECODER, VIDEO_ENCODER
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.video_vae_blocks import (
    CausalConv3d,
    Downsample,
    LatentStatistics,
    ResnetChain,
    Upsample,
    patchify,
    pixel_norm,
    unpatchify,
)
from ltx2rt_export.modules.video_vae_config import (
    Padding,
    ResBlocks,
    Stride,
    VideoDecoderConfig,
    VideoEncoderConfig,
)


class Encoder(nn.Module):
    """Pixels `[B, 3, F, H, W]` -> latent means `[B, C, F', H', W']`, not normalised."""

    def __init__(self, config: VideoEncoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.latent_channels = config.latent_channels
        width, padding = config.width, config.padding
        self.conv_in = CausalConv3d(
            config.in_channels * config.patch_size**2, width, padding, causal=True
        )
        self.down_blocks = nn.ModuleList()
        for block in config.blocks:
            if isinstance(block, ResBlocks):
                self.down_blocks.append(ResnetChain(width, block.num_layers, padding, causal=True))
            else:
                self.down_blocks.append(Downsample(width, block, padding))
                width *= block.multiplier
        self.conv_out = CausalConv3d(width, config.out_rows, padding, causal=True)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv_in(patchify(video, self.patch_size))
        for block in self.down_blocks:
            x = block(x)
        x = self.conv_out(functional.silu(pixel_norm(x)))
        result: Tensor = x[:, : self.latent_channels]
        return result


class Decoder(nn.Module):
    """Latent `[B, C, F', H', W']`, not normalised -> pixels `[B, 3, F, H, W]`."""

    def __init__(self, config: VideoDecoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        width, padding, causal = config.width, config.padding, config.causal
        self.conv_in = CausalConv3d(config.latent_channels, width, padding, causal=causal)
        self.up_blocks = nn.ModuleList()
        for block in config.blocks:
            if isinstance(block, ResBlocks):
                self.up_blocks.append(ResnetChain(width, block.num_layers, padding, causal=causal))
            else:
                self.up_blocks.append(Upsample(width, block, padding, causal=causal))
                width //= block.multiplier
        self.conv_out = CausalConv3d(
            width, config.out_channels * config.patch_size**2, padding, causal=causal
        )

    def forward(self, latent: Tensor) -> Tensor:
        x = self.conv_in(latent)
        for block in self.up_blocks:
            x = block(x)
        return unpatchify(self.conv_out(functional.silu(pixel_norm(x))), self.patch_size)


class VideoEncoder(nn.Module):
    """`video` `[B, 3, F, H, W]` in [-1, 1], `F = 8k + 1` -> normalised `video_latent`."""

    def __init__(self, config: VideoEncoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.per_channel_statistics = LatentStatistics(config.latent_channels)

    def forward(self, video: Tensor) -> tuple[Tensor]:
        return (self.per_channel_statistics.normalize(self.encoder(video)),)


class VideoDecoder(nn.Module):
    """Normalised `video_latent` -> `video` `[B, 3, F, H, W]`, about [-1, 1], not clamped."""

    def __init__(self, config: VideoDecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.per_channel_statistics = LatentStatistics(config.latent_channels)

    def forward(self, video_latent: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.per_channel_statistics.denormalize(video_latent)),)


def video_encoder(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """The video encoder of a checkpoint.

    Args:
        config: the `vae` object of the metadata, flat or nested; may be empty.
        tensors: the VAE's tensors, `vae.` removed.

    Raises:
        CheckpointError: tensors are missing or do not fit.
        UnsupportedError: the configuration is not one of the LTX-2 family.
    """
    parsed = VideoEncoderConfig.from_checkpoint(config, tensors)
    module = on_meta(lambda: VideoEncoder(parsed))
    time, height, width = parsed.scale_factors
    return Component(
        name=VIDEO_ENCODER,
        module=module,
        inputs=(TensorSpec("video", "float32", ("B", parsed.in_channels, "F", "H", "W")),),
        outputs=(_latent_spec(parsed.latent_channels),),
        weights=match_weights(module, tensors, "the video encoder"),
        trace={"B": 2, "F": 2 * time + 1, "H": 2 * height, "W": 3 * width},
        options=_options(parsed.scale_factors, parsed.latent_channels, parsed.padding),
    )


def video_decoder(config: Mapping[str, Any], tensors: TensorIndex) -> Component:
    """The convolutional video decoder of a checkpoint; see `video_encoder`."""
    parsed = VideoDecoderConfig.from_checkpoint(config, tensors)
    module = on_meta(lambda: VideoDecoder(parsed))
    return Component(
        name=VIDEO_DECODER,
        module=module,
        inputs=(_latent_spec(parsed.latent_channels),),
        outputs=(TensorSpec("video", "float32", ("B", parsed.out_channels, "F", "H", "W")),),
        weights=match_weights(module, tensors, "the video decoder"),
        trace={"B": 2, "Fl": 3, "Hl": 4, "Wl": 5},
        options=_options(parsed.scale_factors, parsed.latent_channels, parsed.padding),
    )


def _latent_spec(channels: int) -> TensorSpec:
    return TensorSpec("video_latent", "float32", ("B", channels, "Fl", "Hl", "Wl"))


def _options(scale_factors: Stride, latent_channels: int, padding: Padding) -> dict[str, Any]:
    """Facts for the runtime. Padding by reflection needs two cells: one alone has no neighbour."""
    return {
        "scale_factors": dict(zip(("time", "height", "width"), scale_factors, strict=True)),
        "latent_channels": latent_channels,
        "spatial_padding": padding,
        "min_latent_cells": 2 if padding == "reflect" else 1,
    }
