"""Time one real-size LTX-2.3 block on this machine's GPU: weights as inputs against constants.

Not run yet: written for the first GPU. The variants take turns, after a warm-up of two seconds, and
must agree with each other before any number is given.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine_builds import make_builder, random_block
from benchmarks.timing import percentiles
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.backends.tensorrt_api import APIS, installed_version
from ltx2rt.bundle.targets import target_problems
from ltx2rt.device.cuda import local_gpu
from ltx2rt.engine import EngineSpec
from ltx2rt.errors import InternalError
from ltx2rt.progress import Job
from ltx2rt.weights.floats import bfloat16_values
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt.weights.safetensors import convert
from ltx2rt_export.engines.weights import holding_weights

#: tokens of 768x512x121
SIZES = {"B": 1, "Tv": 6144, "Ta": 126, "S": 1024, "Uv": 2, "Ua": 2}
WARM_UP_S = 2.0
ROUNDS = 20
RUNS_A_ROUND = 5

#: relative RMS between the two variants: the same arithmetic, in another order of summation
AGREEMENT = 2e-2


def compare() -> dict[str, Any]:
    """Milliseconds of every variant that builds on this GPU with an installed library."""
    gpu = local_gpu("this case")
    results: dict[str, Any] = {}
    for backend, precision in variants(gpu.target):
        results[f"{backend}-{precision}"] = _compare_one(backend, precision, gpu.target)
    if not results:
        return {"skipped": f"no installed library builds for {gpu.target}"}
    first = next(iter(results.values()))["input"]
    return {"median_s": first["median_s"], "gpu": gpu.name, "variants": results}


def variants(target: str) -> list[tuple[str, str]]:
    """Backends that are installed and build for this architecture, with precisions it runs."""
    return [
        (backend, precision)
        for backend in APIS
        if installed_version(backend) is not None and not target_problems(backend, (target,))
        for precision in ("bf16", "fp8")
        if PRECISIONS[precision].min_sm <= int(target.removeprefix("sm"))
    ]


def _compare_one(backend: str, precision: str, target: str) -> dict[str, Any]:
    graph, weights = random_block(precision)
    feeds = _feeds(graph.component.inputs)
    spec = EngineSpec("transformer_block", graph.component.inputs, graph.component.outputs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ways = {"input": (graph, None), "constant": (holding_weights(graph), weights)}
        engines = {}
        for way, (variant, inside) in ways.items():
            builder = make_builder(
                folder / "cache", precision, backend=backend, target=(target,), weights=way
            )
            entry = builder.build(variant, precision, inside, folder / way, Job())
            bound = weights if inside is None else {}
            engines[way] = TrtEngine(folder / way / entry.file, spec, bound, "")
        outputs = {way: engine(feeds)["video_hidden_out"] for way, engine in engines.items()}
        _check_agreement(outputs["input"], outputs["constant"])
        seconds = _interleaved(engines, feeds)
        for engine in engines.values():
            engine.close()
    return {way: percentiles(times) for way, times in seconds.items()}


def _interleaved(engines: dict[str, TrtEngine], feeds: dict[str, Any]) -> dict[str, list[float]]:
    for engine in engines.values():
        engine.bind(feeds)
        engine.bind_weights({})
    end = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < end:
        for engine in engines.values():
            engine.enqueue()
            engine.wait()
    seconds: dict[str, list[float]] = {way: [] for way in engines}
    for _ in range(ROUNDS):
        for way, engine in engines.items():
            start = time.perf_counter()
            for _ in range(RUNS_A_ROUND):
                engine.enqueue()
            engine.wait()
            seconds[way].append((time.perf_counter() - start) / RUNS_A_ROUND)
    return seconds


def _feeds(inputs: Any) -> dict[str, Any]:
    """Inputs in the range of real ones: unit tokens, small modulation, everything switched on."""
    rng = np.random.default_rng(1)
    feeds = {}
    for spec in inputs:
        shape = [
            d if isinstance(d, int) else 1 if d.startswith("1|") else SIZES[d] for d in spec.shape
        ]
        if spec.dtype == "int64":
            feeds[spec.name] = np.zeros(shape, np.int64)
            continue
        if spec.name.endswith(("_keep", "_enabled")):
            values = np.ones(shape, np.float32)
        elif spec.name.endswith("_bias"):
            values = np.zeros(shape, np.float32)
        else:
            values = rng.standard_normal(shape, np.float32) * np.float32(0.5)
        feeds[spec.name] = convert(values, "float32", spec.dtype, spec.name)
    return feeds


def _check_agreement(a: Any, b: Any) -> None:
    one, other = (bfloat16_values(x) for x in (a, b))
    error = float(np.sqrt(np.mean((one - other) ** 2) / np.mean(one**2)))
    if not error <= AGREEMENT:
        raise InternalError(f"weights as inputs and as constants differ by {error:.2e}")
