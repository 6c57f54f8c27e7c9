"""Video VAE, tiling and latent upsamplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ltx2rt.components.diffusion_decoder import DiffusionVideoDecoder
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.latents.tiling import AxisTile, AxisTiling, TilingConfig
from ltx2rt_export.component import TensorIndex
from ltx2rt_export.modules.diffusion_decoder import (
    diffusion_context,
    diffusion_features,
    diffusion_pixels,
)
from ltx2rt_export.modules.meta import load_module
from ltx2rt_export.modules.upsampler import spatial_upsampler, temporal_upsampler
from ltx2rt_export.modules.upsampler_config import UpsamplerConfig
from ltx2rt_export.modules.video_vae import video_decoder, video_encoder
from tests.parity.golden import Case, Runner, Skip, handles

Arrays = dict[str, np.ndarray]

DIFFUSION_PARTS = (diffusion_features, diffusion_context, diffusion_pixels)


def vae(name: str, run: Runner) -> tuple[Mapping[str, Any], TensorIndex]:
    """Configuration and tensors of a checkpoint's video VAE, with or without the `vae.` prefix."""
    return run.config(name).get("vae") or {}, run.tensors(name, "vae.") or run.tensors(name)


def pixels(case: Case) -> np.ndarray:
    """The encoder's input of a case, in [-1, 1]; a small one repeats every pixel 4x4."""
    if "video_u8" in case.inputs:
        u8 = case.inputs["video_u8"]
    else:
        u8 = case.inputs["video_u8_small"].repeat(4, axis=3).repeat(4, axis=4)
    return (u8.astype(np.float32) / np.float32(127.5) - 1).astype(np.float32)


def tiling(params: Mapping[str, Any]) -> TilingConfig | None:
    """The tiling a case names, if any."""
    if "kind" not in params:
        return None
    axes = {}
    for axis in ("frames", "height", "width"):
        value = params.get(axis) or {}
        axes[axis] = AxisTiling(
            value.get("tile_size", 0), value.get("overlap", 0), value.get("num_tiles", 0)
        )
    return TilingConfig(**axes)


@handles("video_vae_decoder")
def decode(case: Case, run: Runner) -> Arrays:
    """Raw pixels, pixels of a tiled decode (both perhaps thinned out), or frames in [0, 1]."""
    component = video_decoder(*vae(case.checkpoint, run))
    decoder = VideoDecoder.from_options(run.engine(component), component.options)
    latent, how = case.inputs["latent"], tiling(case.params)
    if "frames" in case.outputs:
        return {"frames": np.concatenate(list(decoder.decode(latent, how)))}
    video = np.concatenate(list(decoder.decode_raw(latent, how)), axis=2)
    thinned = {"video": video}
    for name in case.outputs:
        if name.startswith("video_stride"):
            step = int(name.removeprefix("video_stride"))
            thinned[name] = video[..., ::step, ::step]
    return thinned


@handles("video_vae_encoder")
def encode(case: Case, run: Runner) -> Arrays:
    """Normalised latent, in one piece or tiled."""
    component = video_encoder(*vae(case.checkpoint, run))
    encoder = VideoEncoder.from_options(run.engine(component), component.options)
    return {"latent": encoder.encode(pixels(case), tiling(case.params))}


@handles("diffusion_vae")
def diffusion_vae(case: Case, run: Runner) -> Arrays:
    """The encoder of the diffusion VAE, or its decoder with noise that repeats.

    The k-th draw is `noise_base` repeated, rolled by k times `roll_columns_per_draw`.
    """
    if "latent" in case.outputs:
        return encode(case, run)
    parts = [make(*vae(case.checkpoint, run)) for make in DIFFUSION_PARTS]
    decoder = DiffusionVideoDecoder(*map(run.engine, parts), parts[0].options)
    how = tiling(case.params)
    drawn: list[list[int]] = []

    def draw(shape: Sequence[int]) -> np.ndarray:
        roll = len(drawn) * case.params.get("roll_columns_per_draw", 0)
        base = np.roll(case.inputs["noise_base"], roll, axis=-1)
        drawn.append(list(shape))
        grid = np.ix_(
            range(shape[1]),
            *(np.arange(n) % p for n, p in zip(shape[2:], base.shape[1:], strict=True)),
        )
        return np.repeat(base[grid][None], shape[0], axis=0)

    frames = np.concatenate(list(decoder.decode(case.inputs["latent"], draw, how)))
    if drawn != case.params["noise_shapes"]:
        raise AssertionError(f"noise was drawn in shapes {drawn}")
    step = case.params["pixel_stride"]
    return {f"frames_stride{step}": frames[:, ::step, ::step]}


@handles("video_vae")
def internals(case: Case, run: Runner) -> Arrays:
    """The output of every block, by hooks."""
    if run.backend != "torch":
        raise Skip("intermediate tensors are not outputs of the graph")
    config, tensors = vae(case.checkpoint, run)
    encoder = load_module(video_encoder(config, tensors))
    decoder = load_module(video_decoder(config, tensors))
    found: Arrays = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda *args: found.update({name: args[2].numpy()}))

    for prefix, blocks in (
        ("down", encoder.encoder.down_blocks),
        ("up", decoder.decoder.up_blocks),
    ):
        for index, block in enumerate(blocks):
            watch(f"{prefix}{index}", block)
    with torch.no_grad():
        encoder(torch.from_numpy(pixels(case)))
        decoder(torch.from_numpy(case.inputs["latent"]))
    return found


@handles("upsampler")
def upsample(case: Case, run: Runner) -> Arrays:
    """The bare network, and the network between un-normalising and normalising."""
    config, tensors = run.config(case.checkpoint), run.tensors(case.checkpoint)
    _, statistics = vae(case.params["statistics_from"], run)
    kind = UpsamplerConfig.from_checkpoint(config, tensors).kind
    factory = temporal_upsampler if kind == "temporal" else spatial_upsampler
    result = {}
    for name, values in (("raw", None), ("pipeline", statistics)):
        component = factory(config, tensors, values)
        network = LatentUpsampler.from_options(run.engine(component), component.options)
        result[name] = network(case.inputs["latent"])
    return result


@handles("json:vae_tiling_geometry")
def geometry(case: Case, run: Runner) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Intervals, pixel ranges and masks of decode tiles."""
    pairs = {}
    factors = VideoScaleFactors()
    for number, entry in enumerate(case.data):
        config = tiling({"kind": entry["kind"], **entry["config"]})
        assert config is not None
        cells = entry["latent_shape"][2:]
        tiles = config.tiles(cells, factors)
        by_axis = dict(zip("fhw", tiles, strict=True))
        seen = {"f": 0, "h": 0, "w": 0}
        for want in sorted(entry["axis_tiles"], key=lambda t: (t["axis"], t["in"])):
            axis = want["axis"]
            got = by_axis[axis][seen[axis]]
            seen[axis] += 1
            pairs[f"{number}.{axis}{seen[axis]}"] = (_row(got), _wanted(want))
        counts = np.array([len(t) for t in tiles])
        pairs[f"{number}.counts"] = (counts, np.array([seen[a] for a in "fhw"]))
    return pairs


def _row(tile: AxisTile) -> np.ndarray:
    weights = tile.weights
    edges = (tile.source.start, tile.source.stop, tile.target.start, tile.target.stop)
    ramps = np.round([*weights[:4], *weights[-4:]], 6)
    # the sum of up to 992 float32 weights is given to 2e-5: compare it to a thousandth
    return np.array([*edges, len(weights), round(float(weights.sum()), 3), *ramps], np.float64)


def _wanted(tile: Mapping[str, Any]) -> np.ndarray:
    ramps = (*tile["mask_head"], *tile["mask_tail"])
    edges = (*tile["in"], *tile["out"])
    return np.array([*edges, tile["mask_len"], round(tile["mask_sum"], 3), *ramps], np.float64)
