"""What a TensorRT-RTX engine does, from the text of its program: which launches, and what for.

An engine holds a program for every bucket, one statement a line: `fully_connected` is a GEMM,
`runtime_fusion` a GEMM with what follows it (the GEMM has a line too), `function` any other kernel,
whose name lists its operators (`__myl_CastMulMean`). Only versions whose text is known are read.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.bundle.engine_file import is_known

_LAUNCH = re.compile(
    rb"^  (function|fully_connected|runtime_fusion)=\{ name=\"?([\w.]+)\"?([^\n]*)$", re.MULTILINE
)
_OPERATORS = re.compile(r"[A-Z][a-z]*")
_INPUTS = re.compile(rb"input_args=\{([^}]*)\}")
_KIND = re.compile(rb" kernel_kind=(\d+)")
_STREAM = re.compile(rb" stream=(\d+)")
#: operators that move nothing, and those that only move
_SHAPES = {"Resh", "Move"}
_MOVES = _SHAPES | {"Tran", "Slic", "Conc"}
#: of `kernel_kind`
_REDUCTION = b"2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """Launches of one run, by kind.

    Attributes:
        gemms, fused_gemms: on their own, and with an epilogue.
        attentions: in one kernel each.
        reductions, pointwise: norms and the like; everything else that computes.
        layouts: kernels that only move data.
        copies: kernels that change nothing: `copied` names the inputs that they copy.
        streams: of the program.
    """

    gemms: int = 0
    fused_gemms: int = 0
    attentions: int = 0
    reductions: int = 0
    pointwise: int = 0
    layouts: int = 0
    copies: int = 0
    copied: tuple[str, ...] = ()
    streams: int = 0

    @property
    def total(self) -> int:
        return (
            self.gemms
            + self.fused_gemms
            + self.attentions
            + self.reductions
            + self.pointwise
            + self.layouts
            + self.copies
        )

    def text(self) -> str:
        """For people."""
        return (
            f"{self.total} launches a run on {self.streams} "
            f"{'stream' if self.streams == 1 else 'streams'}: "
            f"{self.gemms + self.fused_gemms} GEMMs ({self.fused_gemms} with an epilogue), "
            f"{self.attentions} fused attentions, {self.reductions} reductions, "
            f"{self.pointwise} pointwise, {self.layouts} only change layouts, "
            f"{self.copies} only copy" + (f" (first {self.copied[0]})" if self.copied else "")
        )


def launches_of(engine: Path, backend: str, version: str, buckets: int) -> Launches | None:
    """Launches of one run; None where the program cannot be read.

    Args:
        buckets: of the engine: the program is there once for each.
    """
    if not is_known(backend, version):
        return None
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = [(m[1], m[2].decode(), m[3]) for m in _LAUNCH.finditer(data)]
    if not found or len(found) % buckets:
        return None
    return _counted(found, buckets)


def _counted(found: Iterable[tuple[bytes, str, bytes]], buckets: int) -> Launches:
    counts = dict.fromkeys(
        ("gemms", "fused_gemms", "attentions", "reductions", "pointwise", "layouts", "copies"), 0
    )
    copied: list[str] = []
    streams = set()
    for statement, name, rest in found:
        kind = _kind(statement, name, rest)
        counts[kind] += 1
        streams |= set(_STREAM.findall(rest))
        if kind == "copies" and (inputs := _INPUTS.search(rest)) is not None:
            names = re.findall(r'"([^"]+)"', inputs[1].decode())
            copied += [re.sub(r"\.\d+$", "", n) for n in names[:1] if not n.startswith("__my")]
    counts["gemms"] -= counts["fused_gemms"]  # which are there twice
    a_run = {kind: count // buckets for kind, count in counts.items()}
    return Launches(**a_run, copied=tuple(copied[: len(copied) // buckets]), streams=len(streams))


def _kind(statement: bytes, name: str, rest: bytes) -> str:
    if statement == b"fully_connected":
        return "gemms"
    if statement == b"runtime_fusion":
        return "fused_gemms"
    if name.startswith("_gemm_mha"):
        return "attentions"
    operators = set(_OPERATORS.findall(name.removeprefix("__myl_")))
    if operators <= _SHAPES:
        return "copies"
    if operators <= _MOVES:
        return "layouts"
    kind = _KIND.search(rest)
    return "reductions" if kind is not None and kind[1] == _REDUCTION else "pointwise"
