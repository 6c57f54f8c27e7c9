"""One number of `host_work`, and whether it keeps its bound."""

from __future__ import annotations

from dataclasses import dataclass

#: unit -> how its numbers are written
_FORMATS = {"CPU seconds": "{:.4f} s", "bytes": "{:,.0f} bytes", "calls": "{:,.0f}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number and what it may be at the most.

    Attributes:
        bound: of design; None: there is none.
        remark: what geometry it is of, and what is in it that a GPU's host would not do.
    """

    what: str
    value: float
    unit: str
    bound: float | None
    remark: str = ""

    @property
    def holds(self) -> bool:
        return self.bound is None or self.value <= self.bound

    def line(self) -> str:
        """A row of the table."""
        show = _FORMATS[self.unit].format
        bound = "none" if self.bound is None else show(self.bound)
        outcome = "" if self.bound is None else "pass" if self.holds else "**fail**"
        return f"| {self.what} | {show(self.value)} | {bound} | {outcome} | {self.remark} |"
