"""What a GPU could do at best: peaks of its data sheet, and the least time of a case."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.kernels.cases import AttentionCase, Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Dense tensor-core rates with float32 sums, in TFLOP/s, and memory bandwidth in GB/s."""

    bf16: float
    fp8: float | None
    bandwidth: float


#: name that `torch.cuda.get_device_name` contains -> vendor's data sheet; first match counts
PEAKS = {
    "B200": Peaks(bf16=2250, fp8=4500, bandwidth=8000),
    "GH200 480GB": Peaks(bf16=989, fp8=1979, bandwidth=4000),
    "H200": Peaks(bf16=989, fp8=1979, bandwidth=4800),
    "H100 PCIe": Peaks(bf16=756, fp8=1513, bandwidth=2000),
    "H100 NVL": Peaks(bf16=835, fp8=1671, bandwidth=3900),
    "H100": Peaks(bf16=989, fp8=1979, bandwidth=3350),
    "A100-SXM4-80GB": Peaks(bf16=312, fp8=None, bandwidth=2039),
    "A100 80GB PCIe": Peaks(bf16=312, fp8=None, bandwidth=1935),
    "A100": Peaks(bf16=312, fp8=None, bandwidth=1555),
    "L40S": Peaks(bf16=362, fp8=733, bandwidth=864),
    "RTX 4090": Peaks(bf16=165, fp8=330, bandwidth=1008),
    "RTX 5090": Peaks(bf16=210, fp8=419, bandwidth=1792),
}


def peaks_of(gpu: str) -> Peaks | None:
    """Peaks of a GPU by its name; None if it is not in the table."""
    return next((peaks for name, peaks in PEAKS.items() if name in gpu), None)


def least_seconds(case: Case, peaks: Peaks, *, eight_bit: bool = False) -> float | None:
    """Time of a perfect kernel; None if the GPU does not have the type.

    Args:
        case: the work.
        peaks: of the GPU.
        eight_bit: both products run in 8 bits.
    """
    memory = case.bytes / (peaks.bandwidth * 1e9)
    if not isinstance(case, AttentionCase):
        return memory
    rate = peaks.fp8 if eight_bit else peaks.bf16
    return None if rate is None else max(memory, case.flops / (rate * 1e12))


def figures(
    case: Case, seconds: float, peaks: Peaks | None, *, eight_bit: bool
) -> dict[str, float]:
    """TFLOP/s (attention), GB/s, and the share of the roofline that a median time reaches."""
    made = {"gb_per_s": case.bytes / seconds / 1e9}
    if isinstance(case, AttentionCase):
        made["tflops"] = case.flops / seconds / 1e12
    least = None if peaks is None else least_seconds(case, peaks, eight_bit=eight_bit)
    if least is not None:
        made["roofline"] = least / seconds
    return made
