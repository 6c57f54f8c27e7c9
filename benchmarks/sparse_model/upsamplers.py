"""Latent upsamplers of released models (spec/upsampler.md)."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.sparse_model.files import shapes_of, write_sparse
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.upsampler import LatentUpsampler
from ltx2rt_export.modules.upsampler_config import UpsamplerConfig

SPATIAL_2 = UpsamplerConfig(kind="rational", scale=(2, 1))
SPATIAL_23 = UpsamplerConfig(kind="spatial", scale=(2, 1))
TEMPORAL_23 = UpsamplerConfig(kind="temporal", scale=(1, 1), mid_channels=512)


def write_upsampler(path: Path, config: UpsamplerConfig) -> None:
    """Write the file of an upsampler."""
    temporal = config.kind == "temporal"
    settings = {
        "in_channels": config.channels,
        "mid_channels": config.mid_channels,
        "num_blocks_per_stage": config.num_blocks,
        "dims": 3,
        "spatial_upsample": not temporal,
        "temporal_upsample": temporal,
        "spatial_scale": config.scale[0] / config.scale[1],
        "rational_resampler": config.kind == "rational",
    }
    shapes = shapes_of("", on_meta(lambda: LatentUpsampler(config, raw=True)))
    if config.kind == "rational":  # also in files for x2, which have nothing to blur
        shapes["upsampler.blur_down.kernel"] = (1, 1, 5, 5)
    write_sparse(path, shapes, {"config": json.dumps(settings)})
