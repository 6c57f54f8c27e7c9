"""Normal noise as torch draws it on a named NVIDIA GPU, in numpy: what the official pipelines start
from there.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), laid out as
torch's kernel does (`aten/src/ATen/native/cuda/DistributionTemplates.h`): a grid of threads, as
many as the GPU holds, each with a counter of its own. Values are turned into normals by Box-Muller
as in cuRAND; a GPU's sine, cosine and logarithm are approximations, so numbers agree to about 1e-6
and most of them to the bit once they are rounded to bfloat16.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import Array
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.weights.floats import FLOAT_DTYPES, cast

CPU = "cpu"
#: GPU -> multiprocessors, and threads that each of them holds
GPUS: dict[str, tuple[int, int]] = {
    "a100": (108, 2048),
    "h100": (132, 2048),
    "h200": (132, 2048),
    "b200": (148, 2048),
    "rtx4090": (128, 1536),
    "rtx5090": (170, 1536),
}
_GRID = re.compile(r"([1-9]\d{0,3})x([1-9]\d{1,3})")
_BLOCK = 256  # threads
_WORDS = 4  # of a counter

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)

_2_POW_32, _2_POW_53 = np.float32(2.0**-32), 2.0**-53
_TWO_PI = np.float32(2 * math.pi)


class GpuGenerator:
    """A random generator whose `randn` is near `torch.Generator("cuda").manual_seed(seed)`'s.

    Args:
        seed: all 64 bits count.
        multiprocessors, threads: of the GPU; where more values are drawn than it has threads, they
            decide which value goes where.
    """

    def __init__(self, seed: int, multiprocessors: int, threads: int) -> None:
        self.seed = seed
        self._key = seed % 2**64
        self._blocks = multiprocessors * (threads // _BLOCK)
        self._offset = 0

    def copy(self) -> GpuGenerator:
        """A generator in the same state: both give the same values from here on."""
        return copy.copy(self)

    @property
    def state(self) -> NDArray[np.uint64]:
        """`[3]`: seed, grid, and how far its counters are; assign it to go on from there."""
        return np.array([self._key, self._blocks, self._offset], np.uint64)

    @state.setter
    def state(self, values: NDArray[np.uint64]) -> None:
        if values.shape != (3,) or values.dtype != np.uint64 or values[1] != self._blocks:
            raise OptionError("this is not the state of a random generator of this GPU.")
        self._key, self._offset = int(values[0]), int(values[2])

    def randn(self, shape: Sequence[int], dtype: str = "bfloat16") -> Array:
        """Standard normal values.

        Args:
            shape: sizes; only the number of values matters.
            dtype: as of `TorchGenerator.randn`; the official pipelines draw bfloat16.

        Returns:
            A new array.

        Raises:
            OptionError: unknown dtype.
        """
        if dtype not in FLOAT_DTYPES:
            raise OptionError(f"dtype={dtype!r} is not one of {', '.join(FLOAT_DTYPES)}.")
        count = math.prod(shape)
        if not count:
            return cast(np.empty(0), dtype).reshape(tuple(shape))
        a_call = 2 if dtype == "float64" else _WORDS  # values
        total = _BLOCK * min(-(-count // _BLOCK), self._blocks)
        rounds = -(-count // (total * a_call))
        values = np.empty((rounds, a_call, total), np.float64 if a_call == 2 else np.float32)
        threads = np.arange(total, dtype=np.uint64)
        for number in range(rounds):
            words = philox(self._offset // _WORDS + number, threads, self._key)
            values[number] = _doubles(words) if a_call == 2 else _singles(words)
        self._offset += _WORDS * rounds
        return cast(values.reshape(-1)[:count].copy(), dtype).reshape(tuple(shape))


#: what noise is drawn from
Generator = TorchGenerator | GpuGenerator


def make_generator(seed: int, noise: str = CPU) -> Generator:
    """The generator of `GenerationConfig.noise`."""
    if noise == CPU:
        return TorchGenerator(seed)
    return GpuGenerator(seed, *_grid(noise))


def noise_problems(noise: str) -> list[str]:
    """What is wrong with a `GenerationConfig.noise`."""
    if noise == CPU or ((grid := _grid(noise)) and grid[1] >= _BLOCK):
        return []
    return [
        Problem(
            Field("noise"),
            f"={noise!r} is none of {CPU}, {', '.join(GPUS)}; another GPU is named by its "
            "multiprocessors and the threads of each, such as 132x2048",
        )
    ]


def _grid(noise: str) -> tuple[int, int]:
    match = _GRID.fullmatch(noise)
    return (int(match[1]), int(match[2])) if match else GPUS.get(noise.lower(), (0, 0))


def philox(counter: int, threads: NDArray[np.uint64], key: int) -> tuple[NDArray[np.uint32], ...]:
    """Four words for each thread.

    Args:
        counter: the low 64 bits of the counter.
        threads: its high 64 bits.
        key: 64 bits.
    """
    a, b = (np.full_like(threads, word) for word in (counter & 0xFFFFFFFF, counter >> 32))
    c, d = threads & _LOW, threads >> _32
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (
            (second >> _32) ^ b ^ np.uint64(low),
            second & _LOW,
            (first >> _32) ^ d ^ np.uint64(high),
            first & _LOW,
        )
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (a, b, c, d))


def _singles(words: tuple[NDArray[np.uint32], ...]) -> NDArray[np.float32]:
    """`[4, threads]` normals."""
    found = []
    for x, y in (words[:2], words[2:]):
        uniform = x.astype(np.float32) * _2_POW_32 + _2_POW_32 / 2
        angle = y.astype(np.float32) * (_2_POW_32 * _TWO_PI) + _2_POW_32 * _TWO_PI / 2
        radius = np.sqrt(np.float32(-2) * np.log(uniform))
        found += [radius * np.sin(angle), radius * np.cos(angle)]
    return np.stack(found)


def _doubles(words: tuple[NDArray[np.uint32], ...]) -> NDArray[np.float64]:
    """`[2, threads]` normals."""
    wide = [word.astype(np.uint64) for word in words]
    x, y = wide[0] ^ (wide[1] << np.uint64(21)), wide[2] ^ (wide[3] << np.uint64(21))
    radius = np.sqrt(-2.0 * np.log(x * _2_POW_53 + _2_POW_53 / 2))
    angle = math.pi * (y * (2 * _2_POW_53) + _2_POW_53)
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)])
