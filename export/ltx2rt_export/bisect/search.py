"""Bisection over a graph: the tensor that differs although all that it is computed from agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltx2rt.engine import Array
from ltx2rt_export.bisect.lineage import Lineage

#: float32 values (or integers) of the tensors named, by name
Values = Callable[[Sequence[str]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far values lie from the reference; `rel_rms`: of the reference's RMS. NaN where one side
    has a number and the other has none.
    """

    max_abs: float
    rel_rms: float

    def within(self, bound: float) -> bool:
        """Whether they agree."""
        return self.rel_rms <= bound


def difference(got: Array, want: Array) -> Difference:
    """Equal infinities and NaNs at equal places agree; another shape agrees with nothing."""
    if got.shape != want.shape:
        return Difference(float("nan"), float("nan"))
    left, right = got.astype(np.float64), want.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, left - right)
    finite = right[np.isfinite(right)]
    scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    rms = float(np.sqrt(np.mean(apart**2))) if apart.size else 0.0
    return Difference(float(np.abs(apart).max(initial=0.0)), rms / (scale or 1.0))


class Search:
    """Asks both sides for tensors of a graph until one differs whose inputs all agree.

    Args:
        lineage: of the graph whose nodes are looked for.
        reference, suspect: both sides. A question costs a session there and an engine here, which
            is built with the tensors asked for as further outputs.
        bound: relative RMS from which a tensor differs.
        on_probe: called with each question's tensors, before it.
    """

    def __init__(
        self,
        lineage: Lineage,
        reference: Values,
        suspect: Values,
        bound: float,
        on_probe: Callable[[Sequence[str]], None] = lambda names: None,
    ) -> None:
        self._lineage, self._bound = lineage, bound
        self._reference, self._suspect, self._on_probe = reference, suspect, on_probe
        self.found: dict[str, Difference] = {}
        self.probes = 0

    def first(self, outputs: Sequence[str]) -> str | None:
        """The tensor, or None where all outputs agree.

        What leads to a tensor that agrees is taken to agree. Before the answer is given, what it
        is computed from directly is asked for too; one of these that differs is followed upwards.
        """
        wrong = self._wrong(outputs)
        if not wrong:
            return None
        lineage, agreed = self._lineage, 0
        target = min(wrong, key=lambda name: lineage.upto(name).bit_count())
        while True:
            if left := lineage.before(target) & ~agreed:
                middle = lineage.middle(left)
                if self._wrong([middle]):
                    target = middle
                else:
                    agreed |= lineage.upto(middle)
            elif wrong := self._wrong(lineage.nearest(target)):
                target = wrong[0]
            else:
                return target

    def _wrong(self, names: Iterable[str]) -> list[str]:
        """Those of them that differ; the sides are asked for those that are not known."""
        names = list(names)
        if new := [name for name in names if name not in self.found]:
            self._on_probe(new)
            self.probes += 1
            want, got = self._reference(new), self._suspect(new)
            self.found |= {name: difference(got[name], want[name]) for name in new}
        return [name for name in names if not self.found[name].within(self._bound)]
