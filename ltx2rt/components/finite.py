"""Numbers that are none: found where they appear, instead of as a black clip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import EngineError, Field, Problem


def is_finite(values: Array) -> bool:
    """Whether an array holds no NaN and no infinity, by one sum: float64 holds that of any float32
    values, and only they make it something else than a number.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(values.sum(dtype=np.float64)))


def check_finite(where: str, arrays: Mapping[str, Array | None], *, allowed: bool = False) -> None:
    """Stop at NaN and infinity.

    Args:
        where: the stage, and its step: `stage_1, step 3 of 8`.
        arrays: what they are called -> floats; None: there is none.
        allowed: the user wants to go on.

    Raises:
        EngineError: names the place and the arrays.
    """
    found = [n for n, a in arrays.items() if a is not None and not allowed and not is_finite(a)]
    if found:
        raise not_finite(where, " and ".join(found))


def not_finite(where: str, what: str) -> EngineError:
    """The error for numbers that are none, at a place, of something."""
    return EngineError(
        Problem(
            f"{where}: {what} came out as NaN or infinity, so nothing was written: damaged "
            "weights, a LoRA or its strength, or a 16-bit precision that overflows do that. Leave "
            "out the LoRA, check the weights (`ltx2rt verify`), build with another precision, or "
            "go on anyway with ",
            Field("allow_nan"),
            ".",
        )
    )
