"""Random weights by name: the same seed and name give the same tensor, whatever else is made."""

from __future__ import annotations

import zlib

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.weights.safetensors_writer import Stream, bfloat16


class RandomWeights:
    """Collects tensors of one file.

    Attributes:
        tensors: name -> what `write_safetensors` takes; bfloat16 unless `keep_float32` was asked.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tensors: dict[str, Array | Stream] = {}

    def draw(self, name: str, shape: tuple[int, ...]) -> Array:
        """Standard-normal float32 values that depend on seed, name and shape only."""
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return generator.standard_normal(shape, dtype=np.float32)

    def put(self, name: str, values: Array, *, keep_float32: bool = False) -> None:
        """Store given values."""
        values = np.asarray(values, dtype=np.float32)
        self.tensors[name] = values if keep_float32 else bfloat16(values)

    def normal(
        self,
        name: str,
        shape: tuple[int, ...],
        std: float = 1.0,
        mean: float = 0.0,
        *,
        keep_float32: bool = False,
    ) -> None:
        """Store normal values."""
        self.put(name, mean + std * self.draw(name, shape), keep_float32=keep_float32)

    def layer(
        self,
        name: str,
        shape: tuple[int, ...],
        gain: float = 1.0,
        bias: float | None = 0.0,
        fan_in: int | None = None,
    ) -> None:
        """Store the weight and bias of a linear layer or convolution, `shape = [out, in, ...]`.

        A unit-variance input gives an output of standard deviation `gain`, centred on `bias`
        (None: the layer has no bias).
        """
        fan = fan_in or int(np.prod(shape[1:]))
        self.normal(f"{name}.weight", shape, gain / fan**0.5)
        if bias is not None:
            self.normal(f"{name}.bias", (shape[0],), 0.02, bias)
