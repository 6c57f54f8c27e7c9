"""`python -m benchmarks.run kernels`: attention and row kernels on this machine's GPU.

Every time stands beside its error against a float32 reference; a variant whose error is too large
is not timed. Runs unattended; `--search` times other tile sizes instead and says which ones win.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.hardware import environment
from benchmarks.kernels.cases import CASES, SEARCHED, AttentionCase, Case
from benchmarks.kernels.record import line, make_record
from benchmarks.kernels.roofline import peaks_of
from ltx2rt_kernels.errors import KernelError

if TYPE_CHECKING:
    from benchmarks.kernels.device import Kernels

RESULTS = Path(__file__).parents[1] / "results"

#: seconds for the timing of all cases; compiling and gates come on top, about as long again
BUDGET_S = 180.0

#: seconds after which no further case is begun
LIMIT_S = 400.0


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
    from benchmarks.kernels.device import local_arch

    try:
        local_arch()
    except KernelError as error:
        return f"the kernel benchmark cannot run on this GPU: {error}."
    return None


def main(arguments: Sequence[str]) -> int:
    """Run; 0: all verified, 1: a gate was red or a kernel failed, 2: nothing can run here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run kernels", description=__doc__)
    parser.add_argument("--case", action="append", metavar="NAME", help="default: all")
    parser.add_argument(
        "--without", action="append", default=[], metavar="VARIANT", help="leave out, e.g. ltx2rt"
    )
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="for timing, all cases")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="begin no case after that")
    parser.add_argument("--search", action="store_true", help="time tile sizes, choose the fastest")
    parser.add_argument(
        "--no-gate", action="store_true", help="time red variants too; stamps them unverified"
    )
    parser.add_argument("--no-record", action="store_true", help="don't append to the results file")
    parser.add_argument("--results", type=Path, help="the results file; default: in the project")
    parser.add_argument(
        "--artifacts", type=Path, help="folder of kernels that are compiled already"
    )
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.case or ()) - CASES.keys()):
        parser.error(f"no case {', '.join(unknown)}; there are: {', '.join(CASES)}")
    if (reason := why_not()) is not None:
        sys.stderr.write(reason + "\n")
        return 2
    start = time.perf_counter()
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
            found = run_cases(
                cases,
                Path(folder),
                share,
                artifacts=options.artifacts,
                gate=not options.no_gate,
                without=options.without,
                limit_s=options.limit_s,
            )
        file = options.results or file
        for record in found:
            records.append({**record, "environment": where})
            print(line(record), flush=True)
            if not options.no_record:  # as it goes: an interrupted run keeps what it has
                with file.open("a", encoding="utf-8") as results:
                    results.write(json.dumps(records[-1], sort_keys=True) + "\n")
    if options.results is None:
        print("\n".join(json.dumps(r, sort_keys=True) for r in records))
    red = [f"{r['case']} {r['variant']}" for r in records if not r.get("verified", True)]
    if red:
        sys.stderr.write(f"wrong, or cannot run: {', '.join(red)}\n")
    status = 1 if red else 0
    if records and records[-1].get("gpu_lost"):
        options.limit_s -= time.perf_counter() - start
        again = _start_again(records[-1], [case.name for case in cases], share, options)
        status = max(status, again)
    return status


def run_cases(
    cases: Sequence[Case],
    folder: Path,
    share_s: float,
    *,
    gate: bool,
    without: Sequence[str] = (),
    limit_s: float = LIMIT_S,
    artifacts: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of all variants of all cases but those `without`; `share_s` seconds of timing each.

    What fails is a record too. If this process loses the GPU, the record that says so is the last.
    """
    from benchmarks.kernels.device import FAILURES, Kernels, answers

    until = time.perf_counter() + limit_s
    with Kernels(folder, artifacts) as kernels:
        for case in cases:
            if time.perf_counter() > until:
                text = f"not run: {limit_s:.0f} s are over"
                yield {"case": case.name, "variant": "all", "skipped": text}
                continue
            try:
                yield from _run_case(case, kernels, share_s, gate=gate, without=without)
            except FAILURES as error:  # inputs or reference do not fit, or a timed run broke
                yield _failed(case, "all", error, lost=not answers())
            if not answers():
                return


def _run_case(
    case: Case, kernels: Kernels, share_s: float, *, gate: bool, without: Sequence[str]
) -> Iterator[dict[str, Any]]:
    import torch

    from benchmarks.kernels import variants
    from benchmarks.kernels.device import FAILURES, answers, time_interleaved

    torch.cuda.empty_cache()  # the case before has let go of its memory
    peaks = peaks_of(torch.cuda.get_device_name())
    if isinstance(case, AttentionCase):
        inputs = variants.attention_inputs(case)
        want = variants.attention_reference(inputs)
        makers = variants.attention_variants(case, inputs, kernels)
    else:
        makers, want = variants.row_variants(case, kernels)
    made, parities = {}, {}
    for name, make in makers.items():
        if name in without:
            continue
        try:
            variant = make()
            parities[name] = variants.parity(variant, want)
        except FAILURES as error:  # out of memory, or no kernel for this case or GPU
            lost = not answers()
            yield _failed(case, name, error, lost=lost)
            if lost:
                return
        else:
            made[name] = variant
    timed = [n for n, p in parities.items() if p.green or not gate]
    seconds = time_interleaved({n: made[n].run for n in timed}, share_s)
    for name, parity in parities.items():
        if name not in timed:
            text = f"not timed: error {parity.error:.1e}, allowed {parity.bound:.0e}"
            yield {"case": case.name, "variant": name, "skipped": text, "verified": False}
            continue
        eight_bit = made[name].eight_bit
        yield make_record(case, name, seconds[name], parity, peaks, eight_bit=eight_bit)


def _failed(case: Case, variant: str, error: Exception, *, lost: bool) -> dict[str, Any]:
    """A failure of torch is no fault of ours; any other is as bad as a wrong result."""
    lines = str(error).splitlines() or [type(error).__name__]
    record = {"case": case.name, "variant": variant, "skipped": f"cannot run: {lines[0]}"}
    if not variant.startswith("torch"):
        record["verified"] = False
    return {**record, "gpu_lost": True} if lost else record


def _start_again(
    last: dict[str, Any], cases: Sequence[str], share_s: float, options: argparse.Namespace
) -> int:
    """A new process gets the GPU that this one lost: it goes on at the same case without the
    variant that broke it, or at the next case if that is not known. Returns its exit status.
    """
    left = cases[cases.index(last["case"]) + (last["variant"] == "all") :]
    if not left:
        return 0
    flags = [f"--case={name}" for name in left]
    flags += [f"--without={name}" for name in (*options.without, last["variant"])]
    flags += [f"--limit-s={options.limit_s:.0f}", f"--budget-s={share_s * len(left)}"]
    flags += ["--no-gate"] if options.no_gate else []
    flags += ["--no-record"] if options.no_record else []
    flags += [f"--results={options.results}"] if options.results else []
    flags += [f"--artifacts={options.artifacts}"] if options.artifacts else []
    sys.stderr.write("this process lost the GPU; a new one goes on\n")
    command = [sys.executable, "-m", "benchmarks.run", "kernels", *flags]
    return subprocess.run(command, check=False).returncode


def gpu_facts() -> dict[str, Any]:
    """Name, driver, clocks, power and memory of the GPU, and the CUDA of torch."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    fields = ("driver_version", "clocks.sm", "clocks.mem", "power.draw", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    command.append(f"--id=GPU-{properties.uuid}")  # torch's first is not always the system's
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        values = [v.strip() for v in done.stdout.splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError):
        values = ["unknown"] * len(fields)
    return {
        "name": torch.cuda.get_device_name(),
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **dict(zip(fields, values, strict=True)),
    }
