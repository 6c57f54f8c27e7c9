"""What a manifest's options of each component hold: types and ranges, checked when a bundle is
opened, because runtime classes rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DIFFUSION_FEATURES,
    SPATIAL_UPSAMPLER,
    TEMPORAL_UPSAMPLER,
    TEXT_HEAD,
    TRANSFORMER_BLOCK,
    TRANSFORMER_BLOCK_PLAIN,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VOCODER,
)
from ltx2rt.plain_data import read_plain

#: no size, count or factor of a model is beyond it
LARGEST = 2**31
_LARGEST_OF = {"tile_bytes": 2**50}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Factors:
    time: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _VideoVae:
    scale_factors: _Factors
    latent_channels: int
    min_latent_cells: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _AudioVae:
    sampling_rate: int
    n_fft: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _AudioDecoder:
    mel_frames_per_latent: int = 1
    mel_hop_length: int = 1
    mel_bins: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vocoder:
    output_sampling_rate: int = 1
    samples_per_mel_frame: int = 1
    mel_bins: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _DiffusionFeatures:
    """What is missing is named by the decoder that reads it: another version built the bundle."""

    scale_factors: _Factors | None = None
    latent_channels: int = 1
    patch_size: int = 1
    pixel_channels: int = 1
    border_patches: int = 0
    feature_channels: int = 1
    steps: int = 1
    prediction: Literal["x0", "v"] = "x0"
    ghost_frames: int = 0
    min_latent_cells: tuple[int, int, int] = (1, 1, 1)
    feature_stride: tuple[int, int, int] = (1, 1, 1)
    min_feature_cells: tuple[int, int, int] = (1, 1, 1)
    halo_feature_cells: tuple[int, int, int] = (0, 0, 0)
    tile_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upsampler:
    spatial_scale: tuple[int, int]
    temporal_scale: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _TextHead:
    layers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    width: int
    head_dim: int
    max_pos: tuple[float, ...]
    out_channels: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    heads: int
    modalities: Literal["av", "video", "audio"]
    theta: float
    rope_type: str
    frequencies_precision: str
    timestep_scale: float
    eps: float
    video: _Stream | None = None
    audio: _Stream | None = None
    cross_head_dim: int = 1
    cross_max_pos: tuple[float, ...] = ()
    num_layers: int = 1
    keyframes_embedding: bool = False
    lora_inputs: tuple[str, ...] = ()


#: what is read of a component's options; those of others are not relied on
KINDS: Mapping[str, type[Any]] = {
    VIDEO_ENCODER: _VideoVae,
    VIDEO_DECODER: _VideoVae,
    AUDIO_ENCODER: _AudioVae,
    AUDIO_DECODER: _AudioDecoder,
    VOCODER: _Vocoder,
    DIFFUSION_FEATURES: _DiffusionFeatures,
    SPATIAL_UPSAMPLER: _Upsampler,
    TEMPORAL_UPSAMPLER: _Upsampler,
    TEXT_HEAD: _TextHead,
    TRANSFORMER_BLOCK: _Block,
    TRANSFORMER_BLOCK_PLAIN: _Block,
}
#: counts and factors that are at least 1, or above 0
_POSITIVE = frozenset({
    "time", "height", "width", "latent_channels", "sampling_rate", "n_fft", "spatial_scale",
    "temporal_scale", "heads", "head_dim", "cross_head_dim", "theta", "eps", "timestep_scale",
    "max_pos", "cross_max_pos", "mel_frames_per_latent", "mel_hop_length", "mel_bins",
    "output_sampling_rate", "samples_per_mel_frame", "patch_size", "pixel_channels",
    "feature_channels", "steps", "min_latent_cells", "feature_stride", "min_feature_cells",
    "out_channels", "num_layers",
})  # fmt: skip
#: counts that may be 0
_COUNTS = frozenset({"border_patches", "ghost_frames", "halo_feature_cells", "tile_bytes"})


def option_problems(component: str, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a component."""
    where = f"{component}.options"
    problems = _number_problems(options, where)
    kind = KINDS.get(component)
    if kind is not None and not problems:
        problems += read_plain(kind, _known(kind, options), where)[1]
    return problems


def _number_problems(value: Any, where: str) -> list[str]:
    """Numbers that no model has: without end, none at all, or not above 0 where they must be."""
    if isinstance(value, Mapping):
        return [p for k, v in value.items() for p in _number_problems(v, f"{where}.{k}")]
    if isinstance(value, list | tuple):
        return [p for i, v in enumerate(value) for p in _number_problems(v, f"{where}[{i}]")]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    name = where.rpartition(".")[2].partition("[")[0]
    positive = name in _POSITIVE
    least = 0 if name in _COUNTS else -LARGEST
    fits = least <= value <= _LARGEST_OF.get(name, LARGEST) and (value > 0 or not positive)
    return [] if fits else [f"{where} is {str(value)[:40]}"]


def _known(kind: type[Any], options: Any) -> Any:
    """The options that `kind` has, also inside; others are for other versions."""
    if not isinstance(options, Mapping):
        return options
    names = {n: f.type for n, f in kind.__dataclass_fields__.items()}
    inner = {"scale_factors": _Factors, "video": _Stream, "audio": _Stream}
    return {
        n: _known(inner[n], v) if n in inner and isinstance(v, Mapping) else v
        for n, v in options.items()
        if n in names
    }
