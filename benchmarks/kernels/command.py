"""`python -m benchmarks.run kernels`: attention and row kernels on this machine's GPU.

Every time stands beside its error against a float32 reference; a variant whose error is too large
is not timed. Runs unattended; `--search` times other tile sizes instead and says which ones win.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hardware import environment
from benchmarks.kernels.cases import CASES, SEARCHED, AttentionCase, Case
from benchmarks.kernels.record import line, make_record
from benchmarks.kernels.roofline import peaks_of

RESULTS = Path(__file__).parents[1] / "results"

#: seconds for the timing of all cases; compiling and gates come on top, about as long again
BUDGET_S = 180.0


def why_not() -> str | None:
    """Why this machine cannot run the benchmark, in one sentence; None if it can."""
    import torch

    if torch.version.cuda is None:
        return (
            "the kernel benchmark needs an NVIDIA GPU and a CUDA build of torch; "
            f"torch {torch.__version__} has no CUDA."
        )
    if not torch.cuda.is_available():
        return "the kernel benchmark needs an NVIDIA GPU; torch finds none."
    return None


def main(arguments: Sequence[str]) -> int:
    """Run; 0: all verified, 1: a gate was red, 2: nothing can run here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run kernels", description=__doc__)
    parser.add_argument("--case", action="append", metavar="NAME", help="default: all")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="for timing, all cases")
    parser.add_argument("--search", action="store_true", help="time tile sizes, choose the fastest")
    parser.add_argument(
        "--no-gate", action="store_true", help="time red variants too; stamps them unverified"
    )
    parser.add_argument("--no-record", action="store_true", help="don't append to the results file")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.case or ()) - CASES.keys()):
        parser.error(f"no case {', '.join(unknown)}; there are: {', '.join(CASES)}")
    if (reason := why_not()) is not None:
        sys.stderr.write(reason + "\n")
        return 2
    where = {**environment(), "gpu": gpu_facts()}
    cases = [CASES[name] for name in options.case or CASES]
    share = options.budget_s / len(cases)
    file, records = RESULTS / "kernels.jsonl", []
    with tempfile.TemporaryDirectory() as folder:
        if options.search:
            from benchmarks.kernels.search import search

            file = RESULTS / "kernel_configs.jsonl"
            wanted = [c for c in cases if isinstance(c, AttentionCase)]
            chosen = wanted if options.case else SEARCHED
            found = search(chosen, Path(folder), options.budget_s)
        else:
            found = run_cases(cases, Path(folder), share, gate=not options.no_gate)
        for record in found:
            records.append({**record, "environment": where})
            print(line(record), flush=True)
            if not options.no_record:  # as it goes: an interrupted run keeps what it has
                with file.open("a", encoding="utf-8") as results:
                    results.write(json.dumps(records[-1], sort_keys=True) + "\n")
    print("\n".join(json.dumps(r, sort_keys=True) for r in records))
    red = [f"{r['case']} {r['variant']}" for r in records if not r.get("verified", True)]
    if red:
        sys.stderr.write(f"the parity gate is red for: {', '.join(red)}\n")
    return 1 if red else 0


def run_cases(
    cases: Sequence[Case], folder: Path, share_s: float, *, gate: bool
) -> Iterator[dict[str, Any]]:
    """Records of all variants of all cases; `share_s` seconds of timing each."""
    import torch

    from benchmarks.kernels import variants
    from benchmarks.kernels.device import Kernels, time_interleaved

    peaks = peaks_of(torch.cuda.get_device_name())
    with Kernels(folder) as kernels:
        for case in cases:
            skipped: dict[str, str] = {}
            if isinstance(case, AttentionCase):
                inputs = variants.attention_inputs(case)
                want = variants.attention_reference(inputs)
                made = variants.attention_variants(case, inputs, kernels)
            else:
                made, want = variants.row_variants(case, kernels)
            parities = {}
            for name, variant in made.items():
                try:
                    parities[name] = variants.parity(variant, want)
                except RuntimeError as error:  # a torch backend that has no kernel for this case
                    if not name.startswith("torch"):
                        raise
                    skipped[name] = f"cannot run: {str(error).splitlines()[0]}"
            timed = {n: p for n, p in parities.items() if p.green or not gate}
            seconds = time_interleaved({n: made[n].run for n in timed}, share_s)
            for name, parity in parities.items():
                if name not in timed:
                    text = f"not timed: error {parity.error:.1e}, allowed {parity.bound:.0e}"
                    yield {"case": case.name, "variant": name, "skipped": text, "verified": False}
                    continue
                eight_bit = made[name].eight_bit
                yield make_record(case, name, seconds[name], parity, peaks, eight_bit=eight_bit)
            for name, text in skipped.items():
                yield {"case": case.name, "variant": name, "skipped": text}
            del made, want
            torch.cuda.empty_cache()


def gpu_facts() -> dict[str, Any]:
    """Name, driver, clocks, power and memory of the GPU, and the CUDA of torch."""
    import subprocess

    import torch

    fields = ("driver_version", "clocks.sm", "clocks.mem", "power.draw", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        values = [v.strip() for v in done.stdout.splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError):
        values = ["unknown"] * len(fields)
    return {
        "name": torch.cuda.get_device_name(),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **dict(zip(fields, values, strict=True)),
    }
