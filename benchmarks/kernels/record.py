"""Records of the kernel benchmark: the gate, one JSON line a variant, one table line for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.cases import Case
from benchmarks.kernels.roofline import Peaks, figures
from benchmarks.timing import percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Relative RMS error against the float32 reference, and what is allowed."""

    error: float
    bound: float

    @property
    def green(self) -> bool:
        return self.error <= self.bound  # NaN is not


def make_record(
    case: Case,
    variant: str,
    seconds: list[float],
    parity: Parity,
    peaks: Peaks | None,
    *,
    eight_bit: bool = False,
) -> dict[str, Any]:
    """One variant's record, without the environment; a red gate makes it unverified."""
    times = percentiles(seconds)
    return {
        "case": case.name,
        "variant": variant,
        **times,
        **figures(case, times["median_s"], peaks, eight_bit=eight_bit),
        "rel_rms": parity.error,
        "rel_rms_allowed": parity.bound,
        "verified": parity.green,
    }


def line(record: dict[str, Any]) -> str:
    """What people read."""
    if "skipped" in record:
        return f"{record['case']:34} {record['variant']:18} {record['skipped']}"
    parts = [
        f"{record['case']:34} {record['variant']:18} {record['median_s'] * 1e6:10.1f} us",
        f"{record['tflops']:7.1f} TFLOP/s" if "tflops" in record else " " * 15,
        f"{record['gb_per_s']:7.0f} GB/s",
        f"{100 * record['roofline']:5.1f} %" if "roofline" in record else "    - %",
        f"error {record['rel_rms']:.1e}",
    ]
    return "  ".join(parts) + ("" if record["verified"] else "  UNVERIFIED")
