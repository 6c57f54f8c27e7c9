"""The anti-aliased periodic activation of BigVGAN-v2 as one operator (spec/audio.md §6.1).

A vocoder has 200 of them. Opaque to the tracer, each costs one node there; in ONNX each is a call
of one local function, whose body of plain operators backends inline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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
    AntiAliasedSnake <channels> (x, frequency, magnitude, up_kernel, down_kernel) => (y) {
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
    """A call with the weights as they are stored; `gather_parameters` gives it what it takes."""
    call = Op(Opset(_FUNCTION.domain, 1), _FUNCTION.name, _SCHEMA)
    return call(x, alpha, beta, up, down, channels=alpha.shape[0])


#: for `torch.onnx.export(custom_translation_table=...)`
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.ltx2rt.anti_aliased_snake.default: _onnx_anti_aliased_snake,
}


def gather_parameters(model: onnx.ModelProto) -> None:
    """Compute what all snakes of a model take from their weights at once, in a handful of nodes
    instead of fourteen a snake: a session of a vocoder is created in a fraction of the time.
    """
    calls = [n for n in model.graph.node if (n.domain, n.op_type) in FUNCTIONS]
    if not calls:
        return
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}

    def op(kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(name: str, values: Any) -> str:
        constants[name] = np.asarray(values)
        return name

    def split(value: str, sizes: list[int], name: str) -> list[str]:
        outputs = [f"{name}.{i}" for i in range(len(sizes))]
        inputs = [value, constant(f"{name}.sizes", np.asarray(sizes, np.int64))]
        nodes.append(onnx.helper.make_node("Split", inputs, outputs, name=name, axis=0))
        return outputs

    channels = [next(a.i for a in call.attribute if a.name == "channels") for call in calls]
    alpha = op("Concat", *(call.input[1] for call in calls), name="snake.alpha", axis=0)
    beta = op("Concat", *(call.input[2] for call in calls), name="snake.beta", axis=0)
    column = constant("snake.column", np.asarray([-1, 1], np.int64))
    frequency = op("Exp", alpha, name="snake.exp_alpha")
    divisor = op("Exp", beta, name="snake.exp_beta")
    divisor = op("Add", divisor, constant("snake.eps", np.float32(SNAKE_EPS)), name="snake.divisor")
    magnitude = op("Reciprocal", divisor, name="snake.inverse")
    parts = [
        split(op("Reshape", value, column, name=f"{name}.column"), channels, name)
        for name, value in (("snake.frequency", frequency), ("snake.magnitude", magnitude))
    ]
    kernels: dict[tuple[int, int], str] = {}
    for width in sorted(set(channels)):
        own = [i for i, c in enumerate(channels) if c == width]
        for source, name, factor in ((3, f"snake.up{width}", 2.0), (4, f"snake.down{width}", 1.0)):
            taps = op("Concat", *(calls[i].input[source] for i in own), name=f"{name}.taps", axis=0)
            if factor != 1.0:
                two = constant("snake.two", np.float32(factor))
                taps = op("Mul", taps, two, name=f"{name}.scaled")
            size = constant(f"{name}.size", np.asarray([len(own), width, FILTER_TAPS], np.int64))
            wide = op("Expand", taps, size, name=f"{name}.wide")
            rows = constant("snake.rows", np.asarray([-1, 1, FILTER_TAPS], np.int64))
            flat = op("Reshape", wide, rows, name=f"{name}.flat")
            pieces = split(flat, [width] * len(own), name)
            kernels.update({(i, source): piece for i, piece in zip(own, pieces, strict=True)})
    for i, call in enumerate(calls):
        call.input[1:] = [parts[0][i], parts[1][i], kernels[i, 3], kernels[i, 4]]
    kept = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(values, name) for name, values in constants.items()
    )
