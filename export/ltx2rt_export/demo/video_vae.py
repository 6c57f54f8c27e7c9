"""The demo's video VAE and spatial upsampler.

The decoder's kernels are not plain noise: they interpolate between latent cells, and each channel
drifts in its own direction, so that random latents decode to soft colours that move.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from ltx2rt.engine import Array
from ltx2rt_export.demo.random_weights import RandomWeights

LATENT_CHANNELS = 128
PATCH_SIZE = 4
DECODER_BASE_CHANNELS = 8

ENCODER_BLOCKS: list[list[Any]] = [
    ["res_x", {"num_layers": 1}],
    ["compress_space_res", {"multiplier": 1}],
    ["compress_time_res", {"multiplier": 1}],
    ["compress_all_res", {"multiplier": 1}],
    ["compress_all_res", {"multiplier": 1}],
]
#: stored in encoder order: the decoder runs them from the last to the first
DECODER_BLOCKS: list[list[Any]] = [
    ["res_x", {"num_layers": 1}],
    ["compress_space", {"multiplier": 2}],
    ["res_x", {"num_layers": 1}],
    ["compress_time", {"multiplier": 2}],
    ["res_x", {"num_layers": 1}],
    ["compress_all", {"multiplier": 1}],
    ["res_x", {"num_layers": 1}],
    ["compress_all", {"multiplier": 2}],
    ["res_x", {"num_layers": 1}],
]
_STRIDES = {"compress_space": (1, 2, 2), "compress_time": (2, 1, 1), "compress_all": (2, 2, 2)}

#: `vae` object of the checkpoint's metadata
CONFIG: dict[str, Any] = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "encoder_blocks": ENCODER_BLOCKS,
    "decoder_blocks": DECODER_BLOCKS,
    "scaling_factor": 1.0,
    "norm_layer": "pixel_norm",
    "patch_size": PATCH_SIZE,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
    "timestep_conditioning": False,
    "normalize_latent_channels": False,
    "encoder_base_channels": LATENT_CHANNELS,
    "decoder_base_channels": DECODER_BASE_CHANNELS,
    "spatial_padding_mode": "zeros",
}

UPSAMPLER_CHANNELS = 32
UPSAMPLER_CONFIG: dict[str, Any] = {
    "_class_name": "LatentUpsampler",
    "in_channels": LATENT_CHANNELS,
    "mid_channels": UPSAMPLER_CHANNELS,
    "num_blocks_per_stage": 1,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
    "rational_resampler": False,
}


def write_video_vae(weights: RandomWeights) -> None:
    """Add encoder, decoder and statistics under `vae.`."""
    _write_encoder(weights)
    _write_decoder(weights)
    weights.normal("vae.per_channel_statistics.mean-of-means", (LATENT_CHANNELS,), 0.02)
    weights.normal("vae.per_channel_statistics.std-of-means", (LATENT_CHANNELS,), 0.02, 1.0)


def write_spatial_upsampler(weights: RandomWeights) -> None:
    """Add a spatial x2 upsampler: bare names, as in its own file."""
    mid = UPSAMPLER_CHANNELS
    cube = (3, 3, 3)
    weights.layer("initial_conv", (mid, LATENT_CHANNELS, *cube))
    _group_norm(weights, "initial_norm", mid)
    for stage in ("res_blocks.0", "post_upsample_res_blocks.0"):
        for index in (1, 2):
            weights.layer(f"{stage}.conv{index}", (mid, mid, *cube))
            _group_norm(weights, f"{stage}.norm{index}", mid)
    weights.layer("upsampler.0", (4 * mid, mid, 3, 3))
    weights.layer("final_conv", (LATENT_CHANNELS, mid, *cube))


def _group_norm(weights: RandomWeights, name: str, channels: int) -> None:
    weights.normal(f"{name}.weight", (channels,), 0.05, 1.0)
    weights.normal(f"{name}.bias", (channels,), 0.05)


def _write_encoder(weights: RandomWeights) -> None:
    width, root = LATENT_CHANNELS, "vae.encoder."
    cube = (3, 3, 3)
    weights.layer(f"{root}conv_in.conv", (width, 3 * PATCH_SIZE**2, *cube))
    for index, (kind, _) in enumerate(ENCODER_BLOCKS):
        block = f"{root}down_blocks.{index}."
        if kind == "res_x":
            for conv in ("conv1", "conv2"):
                weights.layer(f"{block}res_blocks.0.{conv}.conv", (width, width, *cube))
        else:
            stride = _STRIDES[kind.removesuffix("_res")]
            weights.layer(f"{block}conv.conv", (width // int(np.prod(stride)), width, *cube))
    weights.layer(f"{root}conv_out.conv", (width + 1, width, *cube), gain=2.0)


def _write_decoder(weights: RandomWeights) -> None:
    root = "vae.decoder."
    factor = int(np.prod([p.get("multiplier", 1) for _, p in DECODER_BLOCKS]))
    width = DECODER_BASE_CHANNELS * factor
    name = f"{root}conv_in.conv"
    weights.put(f"{name}.weight", _drifting(weights, name, width, LATENT_CHANNELS))
    weights.normal(f"{name}.bias", (width,), 0.05)
    for index, (kind, params) in enumerate(reversed(DECODER_BLOCKS)):
        block = f"{root}up_blocks.{index}."
        if kind == "res_x":
            for conv, gain in (("conv1", 1.0), ("conv2", 0.3)):
                weights.layer(f"{block}res_blocks.0.{conv}.conv", (width, width, 3, 3, 3), gain)
            continue
        width //= params.get("multiplier", 1)
        name = f"{block}conv.conv"
        stride = _STRIDES[kind]
        values = _interpolating(weights, name, width, width * params.get("multiplier", 1), stride)
        weights.put(f"{name}.weight", values)
        weights.put(f"{name}.bias", np.zeros(values.shape[0]))
    name = f"{root}conv_out.conv"
    # unit-RMS channels through SiLU, mixed to RGB: 0.9 keeps most values inside [-1, 1]
    values = 0.9 * _interpolating(weights, name, 3, width, (1, PATCH_SIZE, PATCH_SIZE))
    order = values.reshape(3, PATCH_SIZE, PATCH_SIZE, width, 3, 3, 3)
    # patches store columns slower than rows (spec/video_vae.md §2.8)
    weights.put(f"{name}.weight", order.swapaxes(1, 2).reshape(values.shape))
    weights.put(f"{name}.bias", np.zeros(values.shape[0]))


def _drifting(weights: RandomWeights, name: str, out: int, channels: int) -> Array:
    """`[out, in, 3, 3, 3]`: each output follows its inputs in one direction over time."""
    mixing = weights.draw(name, (out, channels)) * (2.0 / channels) ** 0.5
    directions = np.array([d for d in product((-1, 0, 1), repeat=2) if any(d)])
    blur = np.array([0.25, 0.5, 0.25], dtype=np.float32)
    kernels = np.zeros((out, 3, 3, 3), dtype=np.float32)
    for index in range(out):
        rows, columns = directions[index % len(directions)]
        for step in (-1, 0, 1):
            for axis_row, axis_column in product(range(3), repeat=2):
                row, column = axis_row + step * rows, axis_column + step * columns
                if 0 <= row < 3 and 0 <= column < 3:
                    kernels[index, step + 1, row, column] += blur[axis_row] * blur[axis_column]
    kernels /= np.sqrt((kernels**2).sum(axis=(1, 2, 3), keepdims=True))
    return np.asarray(mixing[:, :, None, None, None] * kernels[:, None], dtype=np.float32)


def _interpolating(
    weights: RandomWeights, name: str, out: int, channels: int, stride: tuple[int, int, int]
) -> Array:
    """`[out * prod(stride), in, 3, 3, 3]`: mix channels, interpolate between cells."""
    mixing = weights.draw(name, (out, channels)) / channels**0.5
    axes = [_linear_taps(factor) for factor in stride]
    taps = np.einsum("ai,bj,ck->abcijk", *axes).reshape(-1, 3, 3, 3)
    kernel = mixing[:, None, :, None, None, None] * taps[None, :, None]
    return np.asarray(kernel.reshape(-1, channels, 3, 3, 3), dtype=np.float32)


def _linear_taps(factor: int) -> Array:
    """`[factor, 3]`: weights of the cells before, at and after, for each sub-position of a cell."""
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    taps = np.stack([np.maximum(-offsets, 0), 1 - np.abs(offsets), np.maximum(offsets, 0)], axis=1)
    return taps.astype(np.float32)
