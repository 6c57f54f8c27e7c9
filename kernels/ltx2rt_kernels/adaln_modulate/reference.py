"""Adaptive layer norm in plain float32."""

from __future__ import annotations

from torch import Tensor

from ltx2rt_kernels.rms_norm_quant.reference import quantize_tokens, rms_norm


def adaln_modulate(
    x: Tensor, scale: Tensor, shift: Tensor, index: Tensor | None = None, *, epsilon: float = 1e-6
) -> Tensor:
    """`rms_norm(x) (1 + scale) + shift`; float32 inside (spec/transformer.md §11).

    Args:
        x: `[B, T, W]`.
        scale, shift: `[U, W]`, one row for each distinct timestep, if `index` is given; else
            `[B, T, W]`.
        index: `[B, T]` int64, row of each token.
        epsilon: added to the mean square.

    Returns:
        `[B, T, W]`, in the dtype of x.
    """
    return _modulated(x, scale, shift, index, epsilon).to(x.dtype)


def adaln_modulate_quant(
    x: Tensor, scale: Tensor, shift: Tensor, index: Tensor | None = None, *, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The same as E4M3 codes `[B, T, W]` and the maximum of every token `[B, T, 1]` float32."""
    return quantize_tokens(_modulated(x, scale, shift, index, epsilon))


def _modulated(
    x: Tensor, scale: Tensor, shift: Tensor, index: Tensor | None, epsilon: float
) -> Tensor:
    if index is not None:
        scale, shift = scale[index], shift[index]
    return rms_norm(x, epsilon) * (1 + scale.float()) + shift.float()
