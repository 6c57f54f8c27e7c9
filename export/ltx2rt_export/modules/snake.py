"""The anti-aliased periodic activation of BigVGAN-v2 as one operator (spec/audio.md §6.1).

A vocoder has 200 of them. Opaque to the tracer, each costs one node there; in ONNX each is a call
of one local function, whose body of plain operators backends inline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx.parser
import torch
from onnxscript.values import Op, Opset
from torch import Tensor
from torch.nn import functional

#: Taps of the stored low-pass filters.
FILTER_TAPS = 12

#: Added to exp(beta) before the division.
SNAKE_EPS = 1e-9


def upsample(x: Tensor, taps: Tensor) -> Tensor:
    """`[B, C, L]` -> `[B, C, 2 L]`; the convolution's own padding crops 15 samples a side.

    Args:
        x: the signal.
        taps: low-pass filter, `[1, 1, 12]`.
    """
    channels = x.shape[1]
    kernel = (2.0 * taps).expand(channels, 1, FILTER_TAPS)
    x = functional.pad(x, (5, 5), mode="replicate")
    return functional.conv_transpose1d(x, kernel, stride=2, padding=15, groups=channels)


def downsample(v: Tensor, taps: Tensor) -> Tensor:
    """`[B, C, 2 L]` -> `[B, C, L]`; the last sample of the official padding is never read."""
    channels = v.shape[1]
    v = functional.pad(v, (5, 5), mode="replicate")
    return functional.conv1d(v, taps.expand(channels, 1, FILTER_TAPS), stride=2, groups=channels)


def snake(v: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`v + sin(v exp(alpha))^2 / (exp(beta) + 1e-9)`, `[B, C, L]`; alpha and beta are `[C]`."""
    frequency, magnitude = torch.exp(alpha), torch.exp(beta)
    wave = torch.sin(v * frequency.unsqueeze(1))
    return v + (1.0 / (magnitude + SNAKE_EPS)).unsqueeze(1) * (wave * wave)


@torch.library.custom_op("ltx2rt::anti_aliased_snake", mutates_args=())
def anti_aliased_snake(x: Tensor, alpha: Tensor, beta: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Snake at twice the sampling rate, `[B, C, L]` -> same.

    Args:
        x: the signal, L >= 1.
        alpha, beta: logarithms of frequency and magnitude, `[C]`; snake without beta has alpha
            twice.
        up, down: low-pass filters, `[1, 1, 12]`.
    """
    return downsample(snake(upsample(x, up), alpha, beta), down)


@anti_aliased_snake.register_fake
def _(x: Tensor, alpha: Tensor, beta: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return torch.empty_like(x)


_FUNCTION = onnx.parser.parse_function(
    """
    <domain: "ltx2rt", opset_import: ["": 20]>
    AntiAliasedSnake <channels> (x, alpha, beta, up, down) => (y) {
        column = Constant <value_ints: ints = [1]> ()
        exp_alpha = Exp (alpha)
        frequency = Unsqueeze (exp_alpha, column)
        eps = Constant <value_float: float = 1e-9> ()
        exp_beta = Exp (beta)
        divisor = Add (exp_beta, eps)
        inverse = Reciprocal (divisor)
        magnitude = Unsqueeze (inverse, column)
        size = Shape (alpha)
        one_and_taps = Constant <value_ints: ints = [1, 12]> ()
        kernel_size = Concat <axis: int = 0> (size, one_and_taps)
        two = Constant <value_float: float = 2.0> ()
        doubled = Mul (up, two)
        up_kernel = Expand (doubled, kernel_size)
        down_kernel = Expand (down, kernel_size)
        pads = Constant <value_ints: ints = [0, 0, 5, 0, 0, 5]> ()
        padded = Pad <mode: string = "edge"> (x, pads)
        v = ConvTranspose <group: int = @channels, kernel_shape: ints = [12], pads: ints = [15, 15],
            strides: ints = [2]> (padded, up_kernel)
        angle = Mul (v, frequency)
        wave = Sin (angle)
        square = Mul (wave, wave)
        scaled = Mul (magnitude, square)
        snaked = Add (v, scaled)
        padded_snaked = Pad <mode: string = "edge"> (snaked, pads)
        y = Conv <group: int = @channels, kernel_shape: ints = [12], strides: ints = [2]>
            (padded_snaked, down_kernel)
    }
    """
)

#: (domain, name) -> the function that a model carries when it has such a node
FUNCTIONS = {(_FUNCTION.domain, _FUNCTION.name): _FUNCTION}

_SCHEMA = onnx.defs.OpSchema(
    _FUNCTION.name,
    _FUNCTION.domain,
    1,
    inputs=[onnx.defs.OpSchema.FormalParameter(name, "T") for name in _FUNCTION.input],
    outputs=[onnx.defs.OpSchema.FormalParameter(name, "T") for name in _FUNCTION.output],
    attributes=[onnx.defs.OpSchema.Attribute("channels", onnx.defs.OpSchema.AttrType.INT)],
    type_constraints=[("T", ["tensor(float)"], "")],
)


def _onnx_anti_aliased_snake(x: Any, alpha: Any, beta: Any, up: Any, down: Any) -> Any:
    call = Op(Opset(_FUNCTION.domain, 1), _FUNCTION.name, _SCHEMA)
    return call(x, alpha, beta, up, down, channels=alpha.shape[0])


#: for `torch.onnx.export(custom_translation_table=...)`
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.ltx2rt.anti_aliased_snake.default: _onnx_anti_aliased_snake,
}
