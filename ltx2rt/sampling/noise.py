"""Normal noise that equals torch's CPU generator bit for bit, without torch.

The same seed gives the same latents on every machine. Three stages: a Mersenne Twister with the
classic seeding, uniforms, and Box-Muller on blocks of 16. In single precision the transform uses
the Cephes polynomials with fused multiply-adds, as torch's AVX2 kernel does. Rules: torch
`aten/src/ATen/native/cpu/DistributionTemplates.h`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32, F64, Array
from ltx2rt.errors import OptionError
from ltx2rt.weights.floats import FLOAT_DTYPES, cast

_BLOCK = 16  # values per Box-Muller block: eight cosines, then their eight sines
_CHUNK_BLOCKS = 1024  # blocks transformed at a time: the scratch arrays stay in the L2 cache


def _single(*values: float) -> tuple[float, ...]:
    return tuple(float(np.float32(v)) for v in values)


_TWO_PI = float(np.float32(6.2831855))
_SQRT_HALF = np.float32(0.707106781186547524)
_LOG_POLY = _single(
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LN2_LOW, _LN2_HIGH = _single(-2.12194440e-4, 0.693359375)
_FOUR_OVER_PI = float(np.float32(1.27323954473516))
_PI_4_PARTS = _single(-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
_COS_POLY = _single(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN_POLY = _single(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)

_DROPPED_BITS = np.int64(0x1FFFFFFF)  # float64 mantissa bits that float32 does not have
_TIE = np.int64(0x10000000)


class _Float32Math:
    """float32 arithmetic on float64 arrays: every result is rounded to float32 once.

    Sums and products of float32 numbers, computed in float64 and rounded, are the correctly rounded
    float32 results. A fused multiply-add is not (the sum itself is rounded), but differs only where
    the float64 sum falls exactly between two float32 numbers; those rare elements are nudged toward
    the part that the float64 sum lost.
    """

    def __init__(self, count: int) -> None:
        self._single = np.empty(count, np.float32)
        self._bits = np.empty(count, np.int64)
        self._tie = np.empty(count, np.bool_)
        self._product = np.empty(count, np.float64)

    def round(self, values: F64) -> F64:
        """Round in place to the nearest float32."""
        np.copyto(self._single, values, casting="same_kind")
        np.copyto(values, self._single)
        return values

    def fma(self, a: F64, b: F64 | float, c: F64 | float, out: F64) -> F64:
        """`out = float32(a * b + c)`, rounded once. `out` may alias any operand."""
        product = np.multiply(a, b, out=self._product)
        addend = c.copy() if isinstance(c, np.ndarray) and c is out else c
        np.add(product, addend, out=out)
        np.bitwise_and(out.view(np.int64), _DROPPED_BITS, out=self._bits)
        np.equal(self._bits, _TIE, out=self._tie)
        if self._tie.any():
            self._break_ties(product, addend, out)
        return self.round(out)

    def _break_ties(self, product: F64, addend: F64 | float, total: F64) -> None:
        where = np.flatnonzero(self._tie)
        p, s = product[where], total[where]
        c = addend[where] if isinstance(addend, np.ndarray) else np.full_like(p, addend)
        part = s - p
        lost = (p - (s - part)) + (c - part)  # two-sum: p + c == s + lost exactly
        away = np.nextafter(s, np.copysign(np.inf, lost))
        total[where] = np.where(lost == 0, s, away)


def _log(x: F32, m: _Float32Math) -> F64:
    """Natural logarithm of positive normal float32 numbers."""
    bits = x.view(np.int32)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(np.float32)  # in [0.5, 1)
    small = mantissa < _SQRT_HALF
    e = (exponent - small).astype(np.float64)
    f = mantissa.astype(np.float64)
    f += f * small
    f -= 1.0  # exact: 2m - 1 or m - 1
    z = m.round(f * f)
    y = np.empty_like(f)
    m.fma(f, _LOG_POLY[0], _LOG_POLY[1], out=y)
    for coefficient in _LOG_POLY[2:]:
        m.fma(y, f, coefficient, out=y)
    y *= f
    m.round(y)
    m.fma(y, z, m.round(e * _LN2_LOW), out=y)
    y -= z * 0.5
    m.round(y)
    f += y
    m.round(f)
    return m.fma(e, _LN2_HIGH, f, out=y)


def _sin_cos(x: F64, m: _Float32Math) -> tuple[F64, F64]:
    """Sine and cosine of float32 numbers in [0, 2 pi]; destroys `x`."""
    octant = m.round(x * _FOUR_OVER_PI).astype(np.int32)
    octant += 1
    octant &= ~1
    j = octant.astype(np.float64)
    for part in _PI_4_PARTS:
        m.fma(j, part, x, out=x)
    z = m.round(x * x)

    cosine = np.empty_like(x)
    m.fma(z, _COS_POLY[0], _COS_POLY[1], out=cosine)
    m.fma(cosine, z, _COS_POLY[2], out=cosine)
    cosine *= z
    m.round(cosine)
    m.fma(cosine, z, z * -0.5, out=cosine)
    cosine += 1.0
    m.round(cosine)

    sine = np.empty_like(x)
    m.fma(z, _SIN_POLY[0], _SIN_POLY[1], out=sine)
    m.fma(sine, z, _SIN_POLY[2], out=sine)
    sine *= z
    m.round(sine)
    m.fma(sine, x, x, out=sine)

    swap = (octant & 2) != 0
    sin_out = np.where(swap, cosine, sine)
    cos_out = np.where(swap, sine, cosine)
    np.negative(sin_out, out=sin_out, where=(octant & 4) != 0)
    np.negative(cos_out, out=cos_out, where=((octant - 2) & 4) == 0)
    return sin_out, cos_out


def _box_muller(uniforms: F32) -> None:
    """Turn `[blocks, 16]` uniforms in [0, 1) into normals, in place."""
    for start in range(0, len(uniforms), _CHUNK_BLOCKS):
        block = uniforms[start : start + _CHUNK_BLOCKS]
        half = block.shape[0] * 8
        math32 = _Float32Math(half)
        radius = _log((np.float32(1) - block[:, :8]).reshape(half), math32).astype(np.float32)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle = math32.round(block[:, 8:].reshape(half).astype(np.float64) * _TWO_PI)
        sine, cosine = _sin_cos(angle, math32)
        block[:, :8] = (radius * cosine.astype(np.float32)).reshape(-1, 8)
        block[:, 8:] = (radius * sine.astype(np.float32)).reshape(-1, 8)
        block += np.float32(0)  # torch ends with value * std + mean, which turns -0 into +0


def _box_muller_double(uniforms: F64) -> None:
    """As `_box_muller` in double precision with the ordinary functions."""
    rest = 1.0 - uniforms[:, :8]
    # numpy's vector log differs from the C library's in the last bit on AVX-512 machines
    logs = np.fromiter(map(math.log, rest.ravel().tolist()), np.float64, rest.size)
    radius = np.sqrt(-2.0 * logs.reshape(rest.shape))
    angle = (2.0 * math.pi) * uniforms[:, 8:]
    uniforms[:, :8] = radius * np.cos(angle) + 0.0
    uniforms[:, 8:] = radius * np.sin(angle) + 0.0


class TorchGenerator:
    """A random generator whose `randn` equals `torch.Generator("cpu").manual_seed(seed)`'s.

    Only the number of values matters, not their shape, and only the low 32 bits of the seed do.
    State is kept between calls: a sequence of draws equals the same sequence in torch.
    """

    def __init__(self, seed: int) -> None:
        key = np.empty(624, np.uint32)
        word = seed & 0xFFFFFFFF
        for i in range(624):
            key[i] = word
            word = (1812433253 * (word ^ (word >> 30)) + i + 1) & 0xFFFFFFFF
        self.seed = seed
        self._engine = np.random.MT19937()
        self._engine.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
        self._cached: float | None = None

    def copy(self) -> TorchGenerator:
        """A generator in the same state: both give the same values from here on."""
        return copy.deepcopy(self)

    @property
    def state(self) -> NDArray[np.uint64]:
        """`[627]`: everything that decides the next values; assign it to go on from there."""
        inner = self._engine.state["state"]
        cached = np.array([self._cached or 0.0], np.float64).view(np.uint64)
        tail = np.array([inner["pos"], self._cached is not None, cached[0]], np.uint64)
        return np.concatenate([inner["key"].astype(np.uint64), tail])

    @state.setter
    def state(self, values: NDArray[np.uint64]) -> None:
        if values.shape != (627,) or values.dtype != np.uint64 or values[624] > 624:
            raise OptionError("this is not the state of a random generator.")
        self._engine.state = {
            "bit_generator": "MT19937",
            "state": {"key": values[:624].astype(np.uint32), "pos": int(values[624])},
        }
        self._cached = float(values[626:].view(np.float64)[0]) if values[625] else None

    def _words(self, count: int) -> NDArray[np.uint64]:
        words: NDArray[np.uint64] = self._engine.random_raw(count)
        return words

    def _uniform32(self, count: int) -> F32:
        words = self._words(count).astype(np.uint32) & np.uint32(0xFFFFFF)
        return words.astype(np.float32) * np.float32(2.0**-24)

    def _uniform64(self, count: int) -> F64:
        words = self._words(2 * count)
        joined = ((words[0::2] << np.uint64(32)) | words[1::2]) & np.uint64((1 << 53) - 1)
        return joined.astype(np.float64) * 2.0**-53

    def randn(self, shape: Sequence[int], dtype: str = "float32") -> Array:
        """Standard normal values.

        Args:
            shape: sizes; values are drawn in row-major order.
            dtype: "float32", "float64", "float16" or "bfloat16". The last is returned as a float32
                array of bfloat16 values (`floats.bfloat16_bits` packs it without loss).

        Returns:
            A new array.

        Raises:
            OptionError: unknown dtype.
        """
        if dtype not in FLOAT_DTYPES:
            raise OptionError(f"dtype={dtype!r} is not one of {', '.join(FLOAT_DTYPES)}.")
        count = math.prod(shape)
        values: Array
        if count < _BLOCK:
            values = np.array([self._next_scalar() for _ in range(count)], np.float64)
        elif dtype == "float64":
            values = self._blocks64(count)
        elif dtype == "float32":
            values = self._blocks32(count)
        else:
            values = self._blocks16(count)
        return cast(values, dtype).reshape(tuple(shape))

    def _next_scalar(self) -> float:
        """One value of the scalar path used for fewer than 16 values; keeps its twin for later."""
        if self._cached is not None:
            value, self._cached = self._cached, None
            return value
        u1, u2 = (float(u) for u in self._uniform64(2))
        radius = math.sqrt(-2.0 * math.log1p(-u2))
        angle = 2.0 * math.pi * u1
        self._cached = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _blocks32(self, count: int) -> F32:
        """One uniform per value; a ragged end is redrawn as a whole block of 16 new uniforms."""
        values = self._uniform32(count)
        whole = count // _BLOCK * _BLOCK
        _box_muller(values[:whole].reshape(-1, _BLOCK))
        if whole != count:
            tail = self._uniform32(_BLOCK).reshape(1, _BLOCK)
            _box_muller(tail)
            values[-_BLOCK:] = tail[0]
        return values

    def _blocks64(self, count: int) -> F64:
        values = self._uniform64(count)
        whole = count // _BLOCK * _BLOCK
        _box_muller_double(values[:whole].reshape(-1, _BLOCK))
        if whole != count:
            tail = self._uniform64(_BLOCK).reshape(1, _BLOCK)
            _box_muller_double(tail)
            values[-_BLOCK:] = tail[0]
        return values

    def _blocks16(self, count: int) -> F32:
        """16-bit types draw block by block: the ragged end gets no uniforms of its own."""
        whole = count // _BLOCK * _BLOCK
        values = np.empty(count, np.float32)
        blocks = self._uniform32(whole + (_BLOCK if whole != count else 0)).reshape(-1, _BLOCK)
        _box_muller(blocks)
        values[:whole] = blocks[: whole // _BLOCK].reshape(-1)
        if whole != count:
            values[-_BLOCK:] = blocks[-1]
        return values
