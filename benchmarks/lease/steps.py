"""The steps of a lease, in order of worth: what each answers, how, and how long it may take."""

from __future__ import annotations

import sys
from dataclasses import dataclass

#: folder of compiled kernels inside the pack
KERNELS = "kernels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process.

    Attributes:
        question: in a sentence.
        command: `{python}`, `{pack}`, `{out}` and `{work}` are filled in.
        limit_s: after which it is stopped; what it printed until then counts.
        module: what must be importable, else the step is skipped with a reason.
        cannot: exit status of a machine that cannot answer.
    """

    name: str
    question: str
    command: tuple[str, ...]
    limit_s: float
    module: str | None = None
    cannot: int = 3


def _answer(name: str) -> tuple[str, ...]:
    return ("{python}", "-m", "benchmarks.lease.answers", name, "--pack", "{pack}")


STEPS = (
    Step(
        name="environment",
        question="What machine is this?",
        command=_answer("environment"),
        limit_s=40,
    ),
    Step(
        name="kernels",
        question="Do the compiled kernels give what their references give?",
        command=_answer("kernels"),
        limit_s=120,
        module="torch",
    ),
    Step(
        name="gpu-tests",
        question="Do engines and kernels pass the tests that need a GPU?",
        command=(
            "{python}", "-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider",
            "--basetemp", "{work}/pytest", "tests/gpu/test_engines.py",
        ),
        limit_s=150,
        module="pytest",
    ),
    Step(
        name="device",
        question="Does our device layer work: streams, events, pinned copies, graphs?",
        command=_answer("device"),
        limit_s=40,
        module="cuda.core",
    ),
    Step(
        name="onnxruntime",
        question="Does a real-width block run through ONNX Runtime's CUDA provider, and how fast?",
        command=_answer("onnxruntime"),
        limit_s=90,
        module="onnxruntime",
    ),
    Step(
        name="ceilings",
        question="What do a copy and a matrix product reach here?",
        command=_answer("ceilings"),
        limit_s=30,
        module="torch",
    ),
    Step(
        name="attention",
        question="Our attention against cuDNN and flash, error beside time, masked and not.",
        command=(
            "{python}", "-m", "benchmarks.run", "kernels", "--artifacts", "{pack}/" + KERNELS,
            "--case", "attention-128-6144x6144", "--case", "attention-128-32640x32640",
            "--case", "attention-128-8191x8191-masked", "--case", "attention-64-6144x126",
            "--case", "qk_norm_rope-6144x4096", "--case", "adaln_modulate-6144x4096",
            "--budget-s", "40", "--limit-s", "110", "--results", "{out}/kernels.jsonl",
        ),
        limit_s=140,
        module="triton",
        cannot=2,
    ),
    Step(
        name="reference",
        question="PyTorch on a real-width block: seconds eager and compiled, peak memory.",
        command=_answer("reference"),
        limit_s=120,
        module="torch",
    ),
    Step(
        name="noise",
        question="Is our noise torch's, on this CPU and GPU?",
        command=_answer("noise"),
        limit_s=40,
        module="torch",
    ),
    Step(
        name="racecheck",
        question="Does compute-sanitizer find a race in the attention kernel?",
        command=(
            "compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9",
            *_answer("kernels"), "--only", "attention", "--tokens", "129",
        ),
        limit_s=60,
        module="torch",
    ),
)  # fmt: skip

NAMES = tuple(step.name for step in STEPS)


def filled(step: Step, **places: str) -> list[str]:
    """Its command line."""
    return [part.format(python=sys.executable, **places) for part in step.command]
