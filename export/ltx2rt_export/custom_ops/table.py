"""Which operators a graph gets, per backend, target and precision."""

from __future__ import annotations

from dataclasses import dataclass

from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt_export.quantize.rewrites import REWRITES
from ltx2rt_kernels.launch import ARTIFACTS_FOR
from ltx2rt_kernels.spec import KERNEL_DTYPES

MODES = ("auto", "on", "off")

#: operators that the pass knows, in the order in which it applies them
QK_NORM_ROPE = "qk_norm_rope"
ADALN_MODULATE = "adaln_modulate"
GATED_RESIDUAL = "gated_residual"
FP8_ATTENTION = "fp8_attention"
FLASH_ATTENTION = "flash_attention"

_ROWS = (QK_NORM_ROPE, ADALN_MODULATE, GATED_RESIDUAL)
_SIXTEEN_BIT = (*_ROWS, FLASH_ATTENTION)
_EIGHT_BIT = (*_ROWS, FP8_ATTENTION, FLASH_ATTENTION)

#: target -> architecture of our kernels
ARCHITECTURES = {f"sm{a}{b}": names[0] for (a, b), names in ARTIFACTS_FOR.items()}

#: precisions whose activations have one of these
_KERNEL_PRECISIONS = tuple(n for n, row in PRECISIONS.items() if row.dtype in KERNEL_DTYPES)

#: precisions that accept 8-bit errors: their video self-attention is 8-bit too
_EIGHT_BIT_PRECISIONS = tuple(n for n, r in REWRITES.items() if r.short_activations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one backend gets from `on`, and from `auto`.

    `auto` is empty until a benchmark on a GPU of that kind says that an operator wins there:
    TensorRT and TensorRT-RTX fuse the same patterns by themselves.
    """

    on: tuple[str, ...]
    auto: tuple[str, ...] = ()


def operators_for(backend: str, target: str | None, precision: str, mode: str) -> tuple[str, ...]:
    """Names of the operators to use.

    Args:
        backend: `onnxruntime`, `tensorrt-rtx` or `tensorrt`.
        target: `sm90`, ...; looked at for `tensorrt` only, where kernels run.
        precision: of the graph.
        mode: `off`: none; `on`: all that the backend can run; `auto`: those known to be faster.

    Raises:
        OptionError: the backend or the mode is unknown.
        UnsupportedError: `on`, and no kernel runs there.
    """
    if mode not in MODES:
        raise OptionError(f"custom_ops={mode!r} is unknown; allowed: {', '.join(MODES)}.")
    if mode == "off":
        return ()
    row = _row(backend, target, precision)
    if mode == "auto":
        return row.auto
    if not row.on:
        raise UnsupportedError(
            f"custom_ops='on' was asked for {backend}, {target or 'no target'}, {precision}; there "
            f"are kernels for {', '.join(ARCHITECTURES)} in {', '.join(_KERNEL_PRECISIONS)}; use "
            "custom_ops='auto' or 'off'."
        )
    return row.on


def _row(backend: str, target: str | None, precision: str) -> Row:
    match backend:
        case "onnxruntime":  # no kernels: function bodies run, for tests and inspection
            return Row(on=_EIGHT_BIT if precision in _EIGHT_BIT_PRECISIONS else _SIXTEEN_BIT)
        case "tensorrt-rtx":  # no plugins: bodies are inlined; it refuses casts to E4M3
            return Row(on=_SIXTEEN_BIT)
        case "tensorrt":
            if target not in ARCHITECTURES or precision not in _KERNEL_PRECISIONS:
                return Row(on=())
            eight = ARCHITECTURES[target] != "80" and precision in _EIGHT_BIT_PRECISIONS
            return Row(on=_EIGHT_BIT if eight else _SIXTEEN_BIT)
    raise OptionError(
        f"backend={backend!r} is unknown; allowed: onnxruntime, tensorrt-rtx, tensorrt."
    )
