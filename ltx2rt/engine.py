"""The boundary between pipelines and backends: named tensors in, named tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ltx2rt.errors import ShapeError

#: arrays on the host by element type; the one home of these names (a test looks)
Array = NDArray[Any]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

#: dtype names of manifests and engines -> the numpy dtype that carries them on the host.
#: bfloat16 has no numpy type: it travels as its uint16 bit pattern.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype(np.uint8),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and symbolic shape of one tensor at an engine's boundary.

    `shape` mixes fixed sizes (int) and symbols (str), e.g. `("B", "Tv", 128)`. Equal symbols mean
    equal sizes, except symbols that start with `1|`: that dimension is either 1 or the size named
    after the bar (it broadcasts).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine takes and gives. Weights bound per call are inputs like any other."""

    component: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@runtime_checkable
class Engine(Protocol):
    """One loaded component. A context manager: `close` frees everything it holds."""

    @property
    def spec(self) -> EngineSpec: ...

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Args:
            tensors: every input of `spec`, by name, with a dtype of `NUMPY_DTYPES`.

        Returns:
            every output of `spec`, by name: new arrays.

        Raises:
            ShapeError: a tensor is missing, unknown, or does not fit the spec.
            EngineError: the backend failed.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Shaped(Protocol):
    """An array, or a tensor elsewhere: what `check_inputs` looks at."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class EngineBase:
    """Context-manager half of the `Engine` protocol, for implementations."""

    def close(self) -> None:
        """Free what the engine holds; the default holds nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_inputs(spec: EngineSpec, tensors: Mapping[str, Shaped]) -> None:
    """Check names, dtypes and shapes of an engine's inputs; further tensors (weights) are not
    looked at.

    Raises:
        ShapeError: lists every input that is missing or does not fit.
    """
    sizes: dict[str, int] = {}
    problems: list[str] = []
    for want in spec.inputs:
        array = tensors.get(want.name)
        if array is None:
            problems.append(f"input {want.name} is missing")
            continue
        if array.dtype != NUMPY_DTYPES[want.dtype]:
            problems.append(f"{want.name} is {array.dtype}, expected {want.dtype}")
        if len(array.shape) != len(want.shape) or not _fits(array.shape, want.shape, sizes):
            known = {k: v for k, v in sizes.items() if any(k in str(d) for d in want.shape)}
            problems.append(
                f"{want.name} has shape {list(array.shape)}, expected "
                f"[{', '.join(map(str, want.shape))}]" + (f" with {known}" if known else "")
            )
    if problems:
        raise ShapeError(f"inputs of {spec.component} do not fit", problems)


def _fits(shape: tuple[int, ...], want: tuple[int | str, ...], sizes: dict[str, int]) -> bool:
    for size, symbol in zip(shape, want, strict=True):
        if isinstance(symbol, int):
            if size != symbol:
                return False
        elif symbol.startswith("1|"):
            if size != 1 and size != sizes.setdefault(symbol[2:], size):
                return False
        elif size != sizes.setdefault(symbol, size):
            return False
    return True
