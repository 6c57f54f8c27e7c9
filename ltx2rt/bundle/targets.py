"""GPU architectures that engines are built for, and cards that have them. Pure Python.

Sources: the support matrices of TensorRT 11.4 and TensorRT-RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: architectures that TensorRT-RTX compiles for, without a GPU
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")

#: architectures that TensorRT compiles for, on a GPU of that architecture
TENSORRT_TARGETS = (
    *("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121"),
)

#: the targets of a TensorRT-RTX build that names none
DEFAULT_RTX_TARGETS = ("sm89", "sm120")


#: clips that engines are built for where none are named
DEFAULT_SHAPES = ("768x512x121",)


class Card(NamedTuple):
    """A graphics card: its name, architecture and memory."""

    name: str
    target: str
    memory_gib: int


#: cards that estimates are compared with, smallest first
CARDS = (
    Card("RTX 4060", "sm89", 8),
    Card("RTX 3060", "sm86", 12),
    Card("RTX 5070", "sm120", 12),
    Card("RTX 4080", "sm89", 16),
    Card("RTX 5080", "sm120", 16),
    Card("RTX 3090", "sm86", 24),
    Card("RTX 4090", "sm89", 24),
    Card("RTX 5090", "sm120", 32),
    Card("L40S", "sm89", 48),
    Card("A100", "sm80", 80),
    Card("H100", "sm90", 80),
    Card("RTX PRO 6000 Blackwell", "sm120", 96),
    Card("H200", "sm90", 141),
    Card("B200", "sm100", 180),
)


def target_problems(backend: str, targets: Sequence[str]) -> list[str]:
    """What is wrong with these targets for a backend; precisions are not looked at."""
    known = RTX_TARGETS if backend == "tensorrt-rtx" else TENSORRT_TARGETS
    problems = []
    for target in targets:
        if target in known:
            continue
        if target in TENSORRT_TARGETS:
            problems.append(
                f"TensorRT-RTX has no target {target}: it builds for {', '.join(RTX_TARGETS)}; "
                "use TensorRT proper (--backend tensorrt) on a GPU of that kind"
            )
        else:
            problems.append(f"unknown target {target!r}; allowed: {', '.join(known)}")
    doubled = sorted({t for t in targets if targets.count(t) > 1})
    return problems + [f"target {t} is named twice" for t in doubled]
