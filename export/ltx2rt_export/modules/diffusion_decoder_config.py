"""What a diffusion video decoder looks like (spec/diffusion_decoder.md §1, §2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex

#: (time, rows, columns)
Cells = tuple[int, int, int]

VAE_CLASS = "CausalDiffusionVAE"
DECODER_CLASS = "NADiffusionDecoder"

#: class defaults for keys that the metadata leaves out
DEFAULT_KERNELS = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5))
DEFAULT_UPSAMPLES = (((1, 2, 2), 2), ((2, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 2))
DEFAULT_STAGE5_KERNEL = (3, 7, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Transformer blocks on one grid, and the upsampling that follows (none for the last).

    Attributes:
        channels, depth, kernel: width, number of blocks, neighbourhood.
        stride: of the upsampling.
        out_channels: width after it.
    """

    channels: int
    depth: int
    kernel: Cells
    stride: Cells = (1, 1, 1)
    out_channels: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionDecoderConfig:
    """A diffusion video decoder.

    Attributes:
        stages: deterministic stages, each with its upsampling.
        pixels: the diffusion stage.
        latent_channels, out_channels, patch_size: at the boundary.
        head_dim: width of an attention head.
        time_width, frequencies: widths of the timestep embedding and of its sinusoids.
        timestep_scale: what a timestep in (0, 1] is multiplied by.
        steps: diffusion steps.
        prediction: what the network predicts.
        gated: blocks have static gates on their branches.
    """

    stages: tuple[Stage, ...]
    pixels: Stage
    latent_channels: int
    out_channels: int
    patch_size: int
    head_dim: int
    time_width: int
    frequencies: int
    timestep_scale: float
    steps: int
    prediction: Literal["x0", "v"]
    gated: bool

    @property
    def scale_factors(self) -> Cells:
        """Pixels per latent cell."""
        time, rows, columns = _strides(self.stages)[-1]
        return time, rows * self.patch_size, columns * self.patch_size

    @property
    def ghost_frames(self) -> int:
        """Copies of the last latent frame that keep borders away from the clip (§5.3)."""
        return 2 * (self.stages[0].kernel[0] // 2)

    @property
    def min_latent_cells(self) -> Cells:
        """Smallest latent that every neighbourhood fits into (§5.1)."""
        kernels = [*(s.kernel for s in self.stages), self.pixels.kernel]
        time, rows, columns = (
            max(-(-k[axis] // s[axis]) for k, s in zip(kernels, _strides(self.stages), strict=True))
            for axis in range(3)
        )
        return time, rows, columns

    @classmethod
    def from_checkpoint(
        cls, config: Mapping[str, Any], tensors: TensorIndex
    ) -> DiffusionDecoderConfig:
        """Read the `vae` object of the metadata and the VAE's tensors.

        Raises:
            CheckpointError: the tensors hold no diffusion decoder.
            UnsupportedError: values this decoder cannot run, all listed, or no metadata.
        """
        if not is_diffusion(tensors):
            raise CheckpointError(
                "this checkpoint has no diffusion decoder: decoder.det_stages.* are missing."
            )
        own = config.get("decoder")
        if not isinstance(own, Mapping):
            raise UnsupportedError(
                "this diffusion decoder is not supported: its metadata has no `vae.decoder`, "
                "and tensors do not show its neighbourhoods; use a file with its metadata."
            )
        problems = _fixed_problems(config, own)
        channels, depths = _found_stages(tensors)
        kernels = [_cells(k) for k in own.get("stage_kernels", DEFAULT_KERNELS)][: len(channels)]
        last_kernel = _cells(own.get("stage5_kernel", DEFAULT_STAGE5_KERNEL))
        strides = [_cells(u[0]) for u in own.get("upsamples", DEFAULT_UPSAMPLES)]
        pixels = _found_pixels(tensors, last_kernel)
        head_dim = _shape(tensors, "decoder.det_stages.0.0.attn.q_norm.weight")[0]
        out_rows = _shape(tensors, "decoder.conv_out.weight")[0]
        patch_size, out_channels = own.get("patch_size", 4), own.get("out_channels", 3)
        if len(kernels) < len(channels) or len(strides) != len(channels):
            problems.append(
                f"stage_kernels and upsamples describe {len(kernels)} and {len(strides)} stages, "
                f"but the tensors have {len(channels)}"
            )
        if len(channels) < 2:
            problems.append(f"{len(channels)} deterministic stages, expected at least 2")
        if out_rows != out_channels * patch_size**2:
            problems.append(
                f"out_channels={out_channels!r} and patch_size={patch_size!r}, but conv_out gives "
                f"{out_rows} channels"
            )
        for key in ("head_dim", "na_head_dim"):
            if own.get(key, head_dim) != head_dim:
                problems.append(f"{key}={own[key]!r}, but the tensors have {head_dim}")
        problems += [
            f"upsamples[{i}] has stride {stride}, expected 1 or 2 along each axis, equal in rows "
            "and columns"
            for i, stride in enumerate(strides)
            if not set(stride) <= {1, 2} or stride[1] != stride[2]
        ]
        problems += [
            f"a stage has {c} channels, not a multiple of the head width {head_dim}"
            for c in (*channels, pixels.channels)
            if c % head_dim
        ]
        _raise(problems)
        widths = [*channels[1:], pixels.channels]
        stages = tuple(
            Stage(channels=c, depth=d, kernel=k, stride=s, out_channels=w)
            for c, d, k, s, w in zip(channels, depths, kernels, strides, widths, strict=True)
        )
        for i, stage in enumerate(stages):
            rows = _shape(tensors, f"decoder.upsamples.{i}.proj.weight")[0]
            time, high, wide = stage.stride
            if rows != stage.out_channels * time * high * wide:
                problems.append(
                    f"upsamples[{i}] has stride {stage.stride}, but its tensor gives {rows} rows "
                    f"for {stage.out_channels} channels"
                )
        _raise(problems)
        time_width, frequencies = _shape(tensors, "decoder.t_embedder.mlp.0.weight")
        return cls(
            stages=stages,
            pixels=pixels,
            latent_channels=_shape(tensors, "decoder.conv_in.weight")[1],
            out_channels=out_channels,
            patch_size=patch_size,
            head_dim=head_dim,
            time_width=time_width,
            frequencies=frequencies,
            timestep_scale=float(own.get("timestep_scale_multiplier", 1.0)),
            steps=own.get("default_num_inference_steps", 2),
            prediction=config.get("model_output_type", "v"),
            gated="decoder.diff_blocks.0.gate_msa" in tensors,
        )


def is_diffusion(tensors: TensorIndex) -> bool:
    """Whether a video VAE's decoder is the diffusion decoder."""
    return "decoder.det_stages.0.0.norm1.weight" in tensors


def _fixed_problems(config: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    problems = []
    expected: tuple[tuple[Mapping[str, Any], str, Any], ...] = (
        (config, "_class_name", VAE_CLASS),
        (own, "_class_name", DECODER_CLASS),
        (own, "resampler_kind", "linear"),
    )
    for where, key, value in expected:
        if where.get(key, value) != value:
            problems.append(f"{key}={where[key]!r}, expected {value!r}")
    prediction = config.get("model_output_type", "v")
    if prediction not in ("x0", "v"):
        problems.append(f"model_output_type={prediction!r}, allowed: 'x0', 'v'")
    steps = own.get("default_num_inference_steps", 2)
    if not isinstance(steps, int) or steps < 1:
        problems.append(f"default_num_inference_steps={steps!r}, expected a positive number")
    return problems


def _found_stages(tensors: TensorIndex) -> tuple[list[int], list[int]]:
    channels: list[int] = []
    depths: list[int] = []
    while (name := f"decoder.det_stages.{len(channels)}.0.norm1.weight") in tensors:
        index, depth = len(channels), 1
        while f"decoder.det_stages.{index}.{depth}.norm1.weight" in tensors:
            depth += 1
        channels.append(tensors[name].shape[0])
        depths.append(depth)
    return channels, depths


def _found_pixels(tensors: TensorIndex, kernel: Cells) -> Stage:
    depth = 0
    while f"decoder.diff_blocks.{depth}.norm1.weight" in tensors:
        depth += 1
    channels = _shape(tensors, "decoder.conv_in_x_t.weight")[0]
    return Stage(channels=channels, depth=depth, kernel=kernel)


def _shape(tensors: TensorIndex, name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"the diffusion decoder is incomplete: tensor {name!r} is missing.")
    return tensors[name].shape


def _cells(value: Sequence[int]) -> Cells:
    time, rows, columns = (int(v) for v in value)
    return time, rows, columns


def _strides(stages: Sequence[Stage]) -> list[Cells]:
    """Cells per latent cell on the grid of every stage, that after the last one included."""
    found: list[Cells] = [(1, 1, 1)]
    for stage in stages:
        time, rows, columns = (a * b for a, b in zip(found[-1], stage.stride, strict=True))
        found.append((time, rows, columns))
    return found


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise UnsupportedError("this diffusion decoder is not supported", problems)
