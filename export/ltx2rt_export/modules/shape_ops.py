"""Operators that move cells between space, time and channels, opaque to the tracer.

Traced as plain reshapes and slices they give nested symbolic sizes, and tracing a VAE takes minutes
(with reflection padding it does not finish). As operators with a plain size rule each costs
nothing; in ONNX they become plain Reshape, Transpose and Slice nodes (`TRANSLATIONS`), of rank 6 at
most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20 as op
from torch import Tensor

INT64_MAX = 2**63 - 1


@torch.library.custom_op("ltx2rt::drop_first", mutates_args=())
def drop_first(x: Tensor) -> Tensor:
    """`[B, C, F, H, W]` without its first frame."""
    return x[:, :, 1:].clone()


@drop_first.register_fake
def _(x: Tensor) -> Tensor:
    batch, channels, frames, height, width = x.shape
    return x.new_empty((batch, channels, frames - 1, height, width))


@torch.library.custom_op("ltx2rt::space_to_depth", mutates_args=())
def space_to_depth(x: Tensor, time: int, rows: int, columns: int) -> Tensor:
    """Pack cells into channels: index ((c*time + t)*rows + row)*columns + column
    (spec/video_vae.md §2.5).
    """
    batch, channels, frames, height, width = x.shape
    if time > 1:
        x = x.reshape(batch, channels, frames // time, time, height, width).transpose(2, 3)
        channels, frames = channels * time, frames // time
        x = x.reshape(batch, channels, frames, height, width)
    if rows > 1:
        x = x.reshape(batch * channels, frames, height // rows, rows, width // columns, columns)
        x = x.permute(0, 3, 5, 1, 2, 4)
    packed = (batch, channels * rows * columns, frames, height // rows, width // columns)
    return x.reshape(packed).clone()


@space_to_depth.register_fake
def _(x: Tensor, time: int, rows: int, columns: int) -> Tensor:
    batch, channels, frames, height, width = x.shape
    return x.new_empty(
        (batch, channels * time * rows * columns, frames // time, height // rows, width // columns)
    )


@torch.library.custom_op("ltx2rt::depth_to_space", mutates_args=())
def depth_to_space(x: Tensor, time: int, rows: int, columns: int) -> Tensor:
    """Exact inverse of `space_to_depth`."""
    batch, channels, frames, height, width = x.shape
    channels = channels // (rows * columns)
    if rows > 1:
        x = x.reshape(batch * channels, rows, columns, frames, height, width)
        x = x.permute(0, 3, 4, 1, 5, 2)
        height, width = height * rows, width * columns
        x = x.reshape(batch, channels, frames, height, width)
    if time > 1:
        x = x.reshape(batch, channels // time, time, frames, height, width).transpose(2, 3)
    return x.reshape(batch, channels // time, frames * time, height, width).clone()


@depth_to_space.register_fake
def _(x: Tensor, time: int, rows: int, columns: int) -> Tensor:
    batch, channels, frames, height, width = x.shape
    return x.new_empty(
        (
            batch,
            channels // (time * rows * columns),
            frames * time,
            height * rows,
            width * columns,
        )
    )


def _sizes(x: Any) -> list[Any]:
    """The five sizes of `x`, each a 1-element int64 tensor of the graph."""
    return [op.Shape(x, start=i, end=i + 1) for i in range(5)]


def _int(value: int) -> Any:
    return op.Constant(value_ints=[value])


def _reshape(x: Any, *sizes: Any) -> Any:
    return op.Reshape(x, op.Concat(*sizes, axis=0))


def _onnx_drop_first(x: Any) -> Any:
    return op.Slice(x, _int(1), _int(INT64_MAX), _int(2))


def _onnx_space_to_depth(x: Any, time: int, rows: int, columns: int) -> Any:
    batch, _, frames, height, width = _sizes(x)
    if time > 1:
        frames = op.Div(frames, _int(time))
        x = _reshape(x, batch, _int(-1), frames, _int(time), height, width)
        x = op.Transpose(x, perm=[0, 1, 3, 2, 4, 5])
        x = _reshape(x, batch, _int(-1), frames, height, width)
    if rows > 1:
        height, width = op.Div(height, _int(rows)), op.Div(width, _int(columns))
        x = _reshape(x, _int(-1), frames, height, _int(rows), width, _int(columns))
        x = op.Transpose(x, perm=[0, 3, 5, 1, 2, 4])
        x = _reshape(x, batch, _int(-1), frames, height, width)
    return x


def _onnx_depth_to_space(x: Any, time: int, rows: int, columns: int) -> Any:
    batch, _, frames, height, width = _sizes(x)
    if rows > 1:
        x = _reshape(x, _int(-1), _int(rows), _int(columns), frames, height, width)
        x = op.Transpose(x, perm=[0, 3, 4, 1, 5, 2])
        height, width = op.Mul(height, _int(rows)), op.Mul(width, _int(columns))
        x = _reshape(x, batch, _int(-1), frames, height, width)
    if time > 1:
        x = _reshape(x, batch, _int(-1), _int(time), frames, height, width)
        x = op.Transpose(x, perm=[0, 1, 3, 2, 4, 5])
        frames = op.Mul(frames, _int(time))
        x = _reshape(x, batch, _int(-1), frames, height, width)
    return x


#: for `torch.onnx.export(custom_translation_table=...)`
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.ltx2rt.drop_first.default: _onnx_drop_first,
    torch.ops.ltx2rt.space_to_depth.default: _onnx_space_to_depth,
    torch.ops.ltx2rt.depth_to_space.default: _onnx_depth_to_space,
}
