"""Buckets: the ranges of sizes that an engine was built for, one optimization profile each.

Sizes are those of the symbols of `TensorSpec.shape` (`B`, `Tv`, ...): what computes a bucket and
what chooses one at run time speak of the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltx2rt.errors import InternalError, ShapeError

#: frames a second of the slowest clip, which has the longest sound, that engines are built for
SLOWEST_RATE = 12.0

#: smallest, most likely and largest size of a symbol
Range = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One optimization profile: `name` for people, and (smallest, likely, largest) per symbol.

    A dimension `1|X` may be named too, where not both of its sizes are allowed.
    """

    name: str
    sizes: dict[str, tuple[int, ...]]

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether every size lies in this bucket; symbols it does not name are free."""
        return all(
            self.sizes[s][0] <= n <= self.sizes[s][2] for s, n in sizes.items() if s in self.sizes
        )

    def reaches(self, sizes: Mapping[str, int]) -> bool:
        """Whether no size lies above this bucket."""
        return all(n <= self.sizes[s][2] for s, n in sizes.items() if s in self.sizes)

    def distance(self, sizes: Mapping[str, int]) -> float:
        """How far sizes are from the likely ones, as a sum of |log ratio|; 0 if equal."""
        return sum(
            abs(math.log(max(n, 1) / max(self.sizes[s][1], 1)))
            for s, n in sizes.items()
            if s in self.sizes
        )

    def excess(self, sizes: Mapping[str, int]) -> float:
        """How far sizes lie outside, as a sum of |log ratio|; 0 inside."""
        total = 0.0
        for symbol, size in sizes.items():
            if symbol in self.sizes:
                low, _, high = self.sizes[symbol]
                total += max(math.log(low / max(size, 1)), math.log(max(size, 1) / high), 0.0)
        return total

    def text(self) -> str:
        """`768x512x121: B 1, Tv 1..13056 (6144)`."""
        parts = [
            f"{s} {low}" if low == high else f"{s} {low}..{high} ({likely})"
            for s, (low, likely, high) in sorted(self.sizes.items())
        ]
        return f"{self.name}: {', '.join(parts)}"


def dimension_range(dimension: int | str, bucket: Bucket) -> Range:
    """(smallest, likely, largest) of one dimension of a tensor; `1|X` is 1 or X, mostly 1."""
    if isinstance(dimension, int):
        return dimension, dimension, dimension
    if dimension.startswith("1|") and dimension not in bucket.sizes:
        return 1, 1, bucket.sizes[dimension[2:]][2]
    low, likely, high = bucket.sizes[dimension]
    return low, likely, high


def tensor_ranges(
    shape: Sequence[int | str], bucket: Bucket
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The smallest, likely and largest shape of a tensor."""
    ranges = [dimension_range(d, bucket) for d in shape]
    return (
        tuple(r[0] for r in ranges),
        tuple(r[1] for r in ranges),
        tuple(r[2] for r in ranges),
    )


def symbol_sizes(
    shapes: Mapping[str, Sequence[int | str]], given: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Sizes of the symbols of `shapes` in given shapes, by tensor name."""
    return {
        symbol: size
        for name, shape in shapes.items()
        for symbol, size in zip(shape, given[name], strict=True)
        if isinstance(symbol, str)
    }


def nearest_bucket(buckets: Sequence[Bucket], sizes: Mapping[str, int]) -> Bucket:
    """The bucket that lies nearest to sizes that none may hold; likely sizes break ties."""
    if not buckets:
        raise InternalError("an engine without buckets")
    return min(buckets, key=lambda b: (b.excess(sizes), b.distance(sizes)))


def misfit(buckets: Sequence[Bucket], sizes: Mapping[str, int]) -> str:
    """What of these sizes lies outside the nearest bucket; "" where a bucket holds all of them."""
    if any(bucket.holds(sizes) for bucket in buckets):
        return ""
    nearest = nearest_bucket(buckets, sizes)
    outside = [
        f"{s}={n} is not in {nearest.sizes[s][0]}..{nearest.sizes[s][2]}"
        for s, n in sorted(sizes.items())
        if s in nearest.sizes and not nearest.sizes[s][0] <= n <= nearest.sizes[s][2]
    ]
    return f"the nearest is {nearest.name}: {', '.join(outside)}"


def choose_bucket(component: str, buckets: Sequence[Bucket], sizes: Mapping[str, int]) -> int:
    """Index of the bucket to run sizes in: of those that hold them, the one made for the likest.

    Raises:
        ShapeError: none holds them; names the nearest bucket and what lies outside it.
    """
    fitting = [i for i, bucket in enumerate(buckets) if bucket.holds(sizes)]
    if fitting:
        return min(fitting, key=lambda i: buckets[i].distance(sizes))
    raise ShapeError(
        f"this request lies outside the buckets that {component} was built for; "
        f"{misfit(buckets, sizes)}. Ask for a size of that bucket, or build again with it in "
        "--shapes."
    )
