"""What a file says about its latent upsampler (spec/upsampler.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex

#: of its group norms
GROUPS = 32

Kind = Literal["spatial", "rational", "temporal"]

#: rows of the upsampling convolution / mid channels -> (numerator, denominator) of the scale
RATIONAL_SCALES = {4: (2, 1), 9: (3, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsamplerConfig:
    """`kind`, and `scale` = (numerator, denominator) of height and width."""

    kind: Kind
    scale: tuple[int, int]
    channels: int = 128
    mid_channels: int = 1024
    num_blocks: int = 4

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], tensors: TensorIndex) -> UpsamplerConfig:
        """Tell the variant by its tensors; the metadata (may be empty) must not contradict.

        Raises:
            CheckpointError: the file holds no latent upsampler.
            UnsupportedError: a variant this network cannot run; all problems are listed.
        """
        for name in ("initial_conv.weight", "final_conv.weight"):
            if name not in tensors:
                raise CheckpointError(
                    f"this file is no latent upsampler: tensor {name!r} is missing."
                )
        mid, channels = tensors["initial_conv.weight"].shape[:2]
        plain, rational = tensors.get("upsampler.0.weight"), tensors.get("upsampler.conv.weight")
        problems = []
        if config.get("dims", 3) != 3:
            problems.append(f"dims={config['dims']!r}, expected 3")
        if mid % GROUPS:
            problems.append(f"mid_channels={mid}, expected a multiple of {GROUPS}")
        kind: Kind = "spatial"
        scale = (2, 1)
        if rational is not None:
            kind = "rational"
            scale = RATIONAL_SCALES.get(rational.shape[0] // mid, (0, 0))
            wanted = config.get("spatial_scale", scale[0] / max(scale[1], 1))
            if scale == (0, 0) or wanted != scale[0] / scale[1]:
                problems.append(
                    f"spatial_scale={config.get('spatial_scale')!r} with upsampler.conv of shape "
                    f"{list(rational.shape)}, allowed: 1.5 and 2.0"
                )
        elif plain is None:
            problems.append("neither upsampler.0.weight nor upsampler.conv.weight exist")
        elif len(plain.shape) == 5 and plain.shape[0] == 2 * mid:
            kind, scale = "temporal", (1, 1)
        elif len(plain.shape) != 4 or plain.shape[0] != 4 * mid:
            problems.append(
                f"upsampler.0.weight has shape {list(plain.shape)}, expected "
                f"[{4 * mid}, {mid}, 3, 3] (spatial) or [{2 * mid}, {mid}, 3, 3, 3] (temporal)"
            )
        if problems:
            raise UnsupportedError("this latent upsampler is not supported", problems)
        num_blocks = 0
        while f"res_blocks.{num_blocks}.conv1.weight" in tensors:
            num_blocks += 1
        return cls(
            kind=kind, scale=scale, channels=channels, mid_channels=mid, num_blocks=num_blocks
        )
