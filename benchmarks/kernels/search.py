"""Time other tile sizes of the attention kernels; the fastest that pass every gate are recorded.

A winner is a line for `CONFIGS` of the operator's `spec.py`: a person copies it, the static gates
and the parity tests then run on it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kernels.cases import AttentionCase
from ltx2rt_kernels.fp8_attention.spec import GROUP
from ltx2rt_kernels.spec import Config, KernelSpec


def candidates(shipped: Config, *, eight_bit: bool) -> list[Config]:
    """Configurations worth compiling, the shipped one first; a step of 8-bit keys is one group.

    Steps with a bias for every query stay as shipped: no case times them, and larger ones spill.
    """
    from ltx2rt_kernels.flash_attention.spec import tiles

    steps, full = (64, 32) if eight_bit else (64, 128, 32), shipped.tiles["FULL_BLOCK_N"]
    made = [
        Config(num_warps=warps, num_stages=stages, tiles=tiles(m, n, min(n, full)))
        for m, n, warps, stages in itertools.product((128, 64), steps, (8, 4), (2, 3, 4))
        if not (m == 64 and warps == 8)
    ]
    assert not eight_bit or all(c.tiles["BLOCK_N"] <= GROUP for c in made)
    return [shipped, *(c for c in made if c != shipped)]


def search(
    cases: Sequence[AttentionCase], folder: Path, budget_s: float
) -> Iterator[dict[str, Any]]:
    """One record a case and kernel: the fastest configuration, beside the shipped one."""
    from benchmarks.kernels.device import Kernels
    from ltx2rt_kernels.flash_attention import spec as flash
    from ltx2rt_kernels.fp8_attention import spec as fp8

    share = budget_s / (2 * len(cases))
    with Kernels(folder) as kernels:
        for case in cases:
            operators = (
                flash.MASKED if case.masked else flash.PLAIN,
                fp8.MASKED_FULL if case.masked else fp8.FULL,
            )
            for operator in operators:
                eight_bit = operator.package == "fp8_attention"
                if eight_bit and kernels.arch == "80":
                    continue
                make = fp8.kernel if eight_bit else flash.kernel
                yield _best(case, make(operator, "bf16", case.head_dim), kernels, share)


def _best(case: AttentionCase, spec: KernelSpec, kernels: Any, share_s: float) -> dict[str, Any]:
    from benchmarks.kernels import variants
    from benchmarks.kernels.device import FAILURES, answers

    inputs = variants.attention_inputs(case)
    want = variants.attention_reference(inputs)
    shipped = spec.configs[kernels.arch]
    found: list[tuple[Config, dict[str, Any]]] = []
    failed = 0
    until = time.perf_counter() + share_s
    for config in candidates(shipped, eight_bit=spec.operator.package == "fp8_attention"):
        if found and time.perf_counter() > until:
            break
        tried = dataclasses.replace(spec, configs={kernels.arch: config})
        try:
            record = _time(case, tried, inputs, want, kernels)
        except FAILURES:
            if not answers():
                raise
            record, failed = None, failed + 1
        kernels.forget(tried)
        if record is not None:
            found.append((config, {**record, "config": as_line(config)}))
    if not found:
        reason = "no configuration passes the static gates and the parity gate"
        return {"case": case.name, "variant": spec.name, "skipped": reason, "verified": False}
    best = min((record for _, record in found), key=lambda r: r["median_s"])
    shipped_s = next((record["median_s"] for c, record in found if c == shipped), None)
    about = {"arch": kernels.arch, "tried": len(found), "failed": failed}
    return {**best, **about, "shipped_median_s": shipped_s}


def _time(
    case: AttentionCase, spec: KernelSpec, inputs: Any, want: Any, kernels: Any
) -> dict[str, Any] | None:
    """Record of one configuration; None if a gate refuses it."""
    import torch

    from benchmarks.kernels import variants
    from benchmarks.kernels.device import time_interleaved
    from benchmarks.kernels.record import make_record
    from benchmarks.kernels.roofline import peaks_of
    from ltx2rt_kernels import build, gates

    if gates.problems(build.compile_kernel(spec, kernels.arch)):
        return None
    variant = variants.one_kernel(case, spec, inputs, kernels)
    parity = variants.parity(variant, want)
    if not parity.green:
        return None
    seconds = time_interleaved({"ltx2rt": variant.run}, 0.5, least=10, most=30)["ltx2rt"]
    peaks = peaks_of(torch.cuda.get_device_name())
    return make_record(case, spec.name, seconds, parity, peaks, eight_bit=variant.eight_bit)


def as_line(config: Config) -> str:
    """The configuration as `spec.py` spells it."""
    sizes = ", ".join(str(config.tiles[n]) for n in ("BLOCK_M", "BLOCK_N", "FULL_BLOCK_N"))
    return (
        f"Config(num_warps={config.num_warps}, num_stages={config.num_stages}, "
        f"tiles=tiles({sizes}))"
    )
