"""The repairs of Triton's interpreter are still needed, and repair."""

from __future__ import annotations

import numpy as np
import torch

from tests.kernels import interpreter as harness
from tests.kernels.interpreter import Interpreter


def _own_and_repaired() -> dict[str, list[float]]:
    """Worker: one product and two roundings, by Triton alone and repaired."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    repairs = harness.APPLIED[0]
    one = np.full((16, 16), 0x3F80, np.uint16)  # bfloat16 1.0
    a = TensorHandle(one, tl.bfloat16)
    c = TensorHandle(np.zeros((16, 16), np.float32), tl.float32)
    value = np.array([1.0 + 2**-7 - 2**-12], np.float32)  # rounds up in bfloat16
    carry = np.array([1.97], np.float32)  # rounds up to 2 in E4M3

    def widened(bits: np.ndarray) -> float:
        return float((bits.astype(np.uint32) << 16).view(np.float32)[0])

    def from_e4m3(bits: np.ndarray) -> float:
        return float(torch.from_numpy(bits.view(np.uint8)).view(torch.float8_e4m3fn).float()[0])

    from triton._C.libtriton import ir

    rounding = ir.ROUNDING_MODE.RTNE
    result = {}
    for name, dot, convert in (
        ("own", repairs.own_dot, repairs.own_convert),
        ("repaired", type(interpreter_builder).create_dot, repairs.convert),
    ):
        product = dot(interpreter_builder, a, a, c, None, 0).data[0, 0]
        result[name] = [
            float(product),
            widened(convert(value, tl.float32, tl.bfloat16, None)),
            from_e4m3(convert(carry, tl.float32, tl.float8e4nv, rounding)),
        ]
    return result


def test_repairs_are_needed(interpreter: Interpreter) -> None:
    """Fails when a new Triton is right by itself: then drop that repair."""
    result = interpreter.call(_own_and_repaired)
    want = [16.0, 1.0 + 2**-7, 2.0]
    assert result["repaired"] == want
    assert all(a != b for a, b in zip(result["own"], want, strict=True)), result["own"]
