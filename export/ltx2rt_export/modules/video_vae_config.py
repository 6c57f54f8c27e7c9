"""Configuration of the conv video VAE, from metadata and tensors (spec/video_vae.md §1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex

Stride = tuple[int, int, int]
Padding = Literal["zeros", "reflect"]

STRIDES: dict[str, Stride] = {"space": (1, 2, 2), "time": (2, 1, 1), "all": (2, 2, 2)}
LOG_VAR_MODES = ("uniform", "constant", "per_channel", "none")
CONV_CLASS = "CausalVideoAutoencoder"

#: Resampling kinds of the published decoders, in running order -> what their tensors cannot tell:
#: (residual, padding).
PUBLISHED_DECODERS: dict[tuple[str, ...], tuple[bool, Padding]] = {
    ("all", "all", "all"): (True, "reflect"),
    ("all", "all", "time", "space"): (False, "zeros"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResBlocks:
    """A chain of residual blocks that keeps shape and width."""

    num_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resample:
    """Space-to-depth (encoder) or depth-to-space (decoder) by `stride` = (time, height, width)."""

    stride: Stride
    multiplier: int
    residual: bool = False

    @property
    def volume(self) -> int:
        return self.stride[0] * self.stride[1] * self.stride[2]


Block = ResBlocks | Resample


def _factors(blocks: Sequence[Block], patch_size: int) -> Stride:
    time, space = 1, patch_size
    for block in blocks:
        if isinstance(block, Resample):
            time *= block.stride[0]
            space *= block.stride[1]
    return time, space, space


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoEncoderConfig:
    """Encoder: `width` channels after `conv_in`; `conv_out` has `out_rows`, the means first."""

    blocks: tuple[Block, ...]
    latent_channels: int = 128
    width: int = 128
    out_rows: int = 129
    in_channels: int = 3
    patch_size: int = 4
    padding: Padding = "zeros"

    @property
    def scale_factors(self) -> Stride:
        """Pixels per latent cell: (time, height, width)."""
        return _factors(self.blocks, self.patch_size)

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], tensors: TensorIndex) -> VideoEncoderConfig:
        """Read the `vae` object of the metadata (flat, nested or empty) and the VAE's tensors.

        Raises:
            CheckpointError: the tensors hold no encoder.
            UnsupportedError: values this encoder cannot run; all of them are listed.
        """
        conv_in = _shape(tensors, "encoder.conv_in.conv.weight", "video encoder")
        conv_out = _shape(tensors, "encoder.conv_out.conv.weight", "video encoder")
        statistics = _shape(tensors, "per_channel_statistics.mean-of-means", "video encoder")
        if is_conv(config):
            own, names = config, ("encoder_blocks", "latent_channels")
        else:
            own, names = config.get("encoder") or {}, ("blocks", "out_channels")
        padding = own.get(
            "spatial_padding_mode", config.get("encoder_spatial_padding_mode", "zeros")
        )
        patch_size = own.get("patch_size", 4)
        in_channels = own.get("in_channels", 3)
        latent_channels = statistics[0]
        problems = _common_problems(own, padding)
        if own.get("latent_log_var", "uniform") not in LOG_VAR_MODES:
            problems.append(
                f"latent_log_var={own['latent_log_var']!r}, allowed: {', '.join(LOG_VAR_MODES)}"
            )
        if own.get(names[1], latent_channels) != latent_channels:
            problems.append(
                f"{names[1]}={own[names[1]]!r}, but the statistics have {latent_channels} channels"
            )
        if conv_in[1] != in_channels * patch_size**2:
            problems.append(
                f"in_channels={in_channels!r} and patch_size={patch_size!r}, but conv_in takes "
                f"{conv_in[1]} channels"
            )
        if conv_out[0] < latent_channels:
            problems.append(
                f"encoder.conv_out gives {conv_out[0]} channels, fewer than the latent's "
                f"{latent_channels}"
            )
        if own.get(names[0]):
            blocks = _listed_blocks(own[names[0]], names[0], "_res", 2, problems)
        else:
            blocks = _derived_blocks(tensors, "encoder", "down_blocks", problems)
        _check_widths(conv_in[0], blocks, "encoder", problems)
        _raise(problems, "this video encoder is not supported")
        return cls(
            blocks=blocks,
            latent_channels=latent_channels,
            width=conv_in[0],
            out_rows=conv_out[0],
            in_channels=in_channels,
            patch_size=patch_size,
            padding=padding,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDecoderConfig:
    """Decoder: `blocks` in running order (metadata reverses them), `width` after `conv_in`."""

    blocks: tuple[Block, ...]
    latent_channels: int = 128
    width: int = 1024
    out_channels: int = 3
    patch_size: int = 4
    padding: Padding = "reflect"
    causal: bool = False

    @property
    def scale_factors(self) -> Stride:
        """Pixels per latent cell: (time, height, width)."""
        return _factors(self.blocks, self.patch_size)

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], tensors: TensorIndex) -> VideoDecoderConfig:
        """Read `config` (the `vae` object, may be empty) and the tensors of the VAE.

        Raises:
            CheckpointError: the tensors hold no decoder.
            UnsupportedError: values this decoder cannot run, all listed, or a diffusion decoder.
        """
        if not is_conv(config):
            raise UnsupportedError(
                f"vae._class_name={config['_class_name']!r} is not a convolutional video decoder "
                f"(expected {CONV_CLASS!r}); use the file with the conv VAE instead."
            )
        conv_in = _shape(tensors, "decoder.conv_in.conv.weight", "convolutional video decoder")
        conv_out = _shape(tensors, "decoder.conv_out.conv.weight", "convolutional video decoder")
        padding = config.get("spatial_padding_mode", "reflect")
        patch_size = config.get("patch_size", 4)
        out_channels = config.get("out_channels", 3)
        problems = _common_problems(config, padding)
        if any(name.startswith("decoder.last_time_embedder.") for name in tensors):
            problems.append(
                "timestep_conditioning (decoder.last_time_embedder.* exist), expected none"
            )
        if any(name.startswith("decoder.") and ".per_channel_scale" in name for name in tensors):
            problems.append("inject_noise (decoder.*.per_channel_scale* exist), expected none")
        if config.get("latent_channels", conv_in[1]) != conv_in[1]:
            problems.append(
                f"latent_channels={config['latent_channels']!r}, but decoder.conv_in takes "
                f"{conv_in[1]} channels"
            )
        if conv_out[0] != out_channels * patch_size**2:
            problems.append(
                f"out_channels={out_channels!r} and patch_size={patch_size!r}, but conv_out "
                f"gives {conv_out[0]} channels"
            )
        if config.get("decoder_blocks"):
            blocks = _listed_blocks(config["decoder_blocks"], "decoder_blocks", "", 1, problems)[
                ::-1
            ]
        else:
            blocks = _derived_blocks(tensors, "decoder", "up_blocks", problems)
            blocks, padding = _published_layout(blocks, config, padding, problems)
        _check_widths(conv_in[0], blocks, "decoder", problems)
        _raise(problems, "this video decoder is not supported")
        return cls(
            blocks=blocks,
            latent_channels=conv_in[1],
            width=conv_in[0],
            out_channels=out_channels,
            patch_size=patch_size,
            padding=padding,
            causal=bool(config.get("causal_decoder", False)),
        )


def is_conv(config: Mapping[str, Any]) -> bool:
    """Whether the `vae` object describes the flat convolutional autoencoder (also the default)."""
    return bool(config.get("_class_name", CONV_CLASS) == CONV_CLASS)


def _raise(problems: Sequence[str], what: str) -> None:
    if problems:
        raise UnsupportedError(what, problems)


def _shape(tensors: TensorIndex, name: str, what: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"this checkpoint has no {what}: tensor {name!r} is missing.")
    return tensors[name].shape


def _common_problems(config: Mapping[str, Any], padding: Any) -> list[str]:
    problems = []
    for key, expected in (("dims", 3), ("norm_layer", "pixel_norm")):
        if config.get(key, expected) != expected:
            problems.append(f"{key}={config[key]!r}, expected {expected!r}")
    if padding not in ("zeros", "reflect"):
        problems.append(f"spatial_padding_mode={padding!r}, allowed: 'zeros', 'reflect'")
    return problems


def _listed_blocks(
    listed: Sequence[Any], key: str, suffix: str, default_multiplier: int, problems: list[str]
) -> tuple[Block, ...]:
    """Parse `[name, params]` pairs; params is a number of layers or a mapping."""
    resamples = {f"compress_{kind}{suffix}": stride for kind, stride in STRIDES.items()}
    blocks: list[Block] = []
    for index, (name, raw) in enumerate(listed):
        params: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {"num_layers": raw}
        if params.get("inject_noise"):
            problems.append(f"{key}[{index}] {name!r} has inject_noise=True, expected False")
        if name == "res_x" and isinstance(params.get("num_layers"), int):
            blocks.append(ResBlocks(num_layers=params["num_layers"]))
        elif name == "res_x":
            problems.append(
                f"{key}[{index}] {name!r} has num_layers={params.get('num_layers')!r}, "
                "expected a number"
            )
        elif name in resamples:
            residual = bool(params.get("residual", False)) and name == "compress_all"
            multiplier = params.get("multiplier", default_multiplier)
            if not isinstance(multiplier, int) or multiplier < 1:
                problems.append(f"{key}[{index}] {name!r} has multiplier={multiplier!r}")
                multiplier = 1
            blocks.append(
                Resample(stride=resamples[name], multiplier=multiplier, residual=residual)
            )
        else:
            problems.append(f"{key}[{index}] is {name!r}, allowed: res_x, {', '.join(resamples)}")
    return tuple(blocks)


def _derived_blocks(
    tensors: TensorIndex, part: str, group: str, problems: list[str]
) -> tuple[Block, ...]:
    """Rebuild the block list from tensor shapes, for files without metadata."""

    def weight(index: int) -> tuple[int, ...] | None:
        for name in ("res_blocks.0.conv1.conv.weight", "conv.conv.weight"):
            entry = tensors.get(f"{part}.{group}.{index}.{name}")
            if entry is not None:
                return entry.shape
        return None

    kinds = {
        STRIDES[kind][0] * STRIDES[kind][1] * STRIDES[kind][2]: STRIDES[kind] for kind in STRIDES
    }
    blocks: list[Block] = []
    index = 0
    while (shape := weight(index)) is not None:
        prefix = f"{part}.{group}.{index}."
        layers = 0
        while f"{prefix}res_blocks.{layers}.conv1.conv.weight" in tensors:
            layers += 1
        rows, width = shape[:2]
        after = (weight(index + 1) or tensors[f"{part}.conv_out.conv.weight"].shape)[1]
        large, small = (after, rows) if part == "encoder" else (rows, after)
        wide, narrow = (after, width) if part == "encoder" else (width, after)
        if layers:
            blocks.append(ResBlocks(num_layers=layers))
        elif large % small or wide % narrow or large // small not in kinds:
            problems.append(
                f"no metadata names {prefix[:-1]}, and its shape {list(shape)} is of no known block"
            )
        else:
            blocks.append(Resample(stride=kinds[large // small], multiplier=wide // narrow))
        index += 1
    if not blocks:
        problems.append(f"neither metadata nor tensors describe any {part} block")
    return tuple(blocks)


def _published_layout(
    blocks: tuple[Block, ...], config: Mapping[str, Any], padding: Padding, problems: list[str]
) -> tuple[tuple[Block, ...], Padding]:
    """Fill in residual and padding of a decoder without a block list, if its layout is known."""
    by_stride = {stride: kind for kind, stride in STRIDES.items()}
    kinds = tuple(by_stride[block.stride] for block in blocks if isinstance(block, Resample))
    if kinds not in PUBLISHED_DECODERS:
        problems.append(
            "decoder_blocks is missing from the metadata and the tensors do not show the layout of "
            "a published decoder: residual and padding are unknown; use a file with its metadata"
        )
        return blocks, padding
    residual, published = PUBLISHED_DECODERS[kinds]
    filled = tuple(
        Resample(stride=block.stride, multiplier=block.multiplier, residual=residual)
        if isinstance(block, Resample)
        else block
        for block in blocks
    )
    return filled, config.get("spatial_padding_mode", published)


def _check_widths(width: int, blocks: Sequence[Block], part: str, problems: list[str]) -> None:
    """Every resampling block must divide its channels evenly."""
    for index, block in enumerate(blocks):
        if not isinstance(block, Resample):
            continue
        if part == "encoder":
            after = width * block.multiplier
            rest = after % block.volume or block.volume % block.multiplier
        else:
            after, rest = width // block.multiplier, width % block.multiplier
            if block.residual:
                rest = rest or width % block.volume or block.volume % block.multiplier
        if rest:
            problems.append(
                f"{part} block {index} cannot split {width} channels by stride {block.stride}, "
                f"multiplier {block.multiplier}"
            )
            return
        width = after
