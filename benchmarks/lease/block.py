"""One real-width LTX-2.3 block: in PyTorch, and through ONNX Runtime's CUDA provider.

`python -m benchmarks.lease.pack` exports its graph, so that the lent machine needs no exporter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.engine import NUMPY_DTYPES, Array, EngineSpec, TensorSpec

GRAPH, SPEC = "block.onnx", "block.json"
#: tokens of 768x512x121
SIZES = {"B": 1, "Tv": 6144, "Ta": 126, "S": 1024, "Uv": 2, "Ua": 2}
#: tokens at which the CPU's result is affordable
CHECKED = {**SIZES, "Tv": 256}
ROUNDS = 10


def filled_block(device: str) -> Any:
    """The component with small random weights, bf16."""
    import torch

    from benchmarks.real_size import LTX23, transformer_components

    component = transformer_components(LTX23)[1]
    module = component.module.to_empty(device=device).to(torch.bfloat16).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            scale = max(weight.shape[-1], 1) ** -0.5
            weight.normal_(0, scale, generator=generator)
    return component


def block_inputs(component: Any, device: str) -> dict[str, Any]:
    """Inputs of a block at `SIZES`."""
    import torch

    kinds = {"bool": torch.bool, "int64": torch.int64, "float32": torch.bfloat16}
    made = {}
    for spec in component.inputs:
        dtype = kinds.get(spec.dtype, torch.bfloat16)
        shape = shape_of(spec, SIZES)
        if dtype is torch.int64:
            made[spec.name] = torch.zeros(shape, dtype=dtype, device=device)
        else:
            made[spec.name] = torch.randn(shape, device=device).to(dtype)
    return made


def pack_graph(folder: Path) -> None:
    """Export the block for ONNX Runtime in float32 (a CPU checks it), with what it takes."""
    from benchmarks.engine_builds import random_block

    graph, _ = random_block("fp32")
    (folder / GRAPH).write_bytes(graph.model.SerializeToString(deterministic=True))
    component = graph.component
    spec = {
        way: [[t.name, t.dtype, list(t.shape)] for t in getattr(component, way)]
        for way in ("inputs", "outputs")
    }
    (folder / SPEC).write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")


def run_onnxruntime(pack: Path) -> tuple[float, float]:
    """Seconds of a block on the GPU at `SIZES`, and its error at `CHECKED` against the CPU."""
    from ltx2rt.backends.device_memory import DeviceMemory
    from ltx2rt.backends.onnxruntime import OrtEngine, OrtOptions
    from ltx2rt.backends.onnxruntime_cuda import OrtDeviceEngine, on_gpu, open_session
    from ltx2rt.device.cuda import CudaDevice

    graph, spec = (pack / GRAPH).read_bytes(), read_spec(pack / SPEC)
    memory = DeviceMemory(CudaDevice("the lease"))
    options = on_gpu(OrtOptions(), 0, memory.device.compute)
    session = open_session(graph, spec.component, {}, options)
    with OrtDeviceEngine(session, spec, {}, memory, 0) as engine:
        weights = random_weights(session, spec)
        feeds = random_inputs(spec, CHECKED)
        with OrtEngine(graph, spec, {}) as cpu:
            want = cpu({**feeds, **weights})
        found = engine({**feeds, **weights})
        error = max(
            float(np.linalg.norm(found[n] - w) / np.linalg.norm(w)) for n, w in want.items()
        )
        placed = {n: memory.hold(a) for n, a in random_inputs(spec, SIZES).items()}
        there = {n: memory.hold(a) for n, a in weights.items()}
        binding = engine.new_binding()
        binding.bind(placed, lambda name, size: memory.buffer(f"out {name}", size))
        engine.bind_weights(there, binding)
        engine.run(binding)
        memory.synchronize()
        start = time.perf_counter()
        for _ in range(ROUNDS):
            engine.run(binding)
        memory.synchronize()
        return (time.perf_counter() - start) / ROUNDS, error


def read_spec(path: Path) -> EngineSpec:
    """What `pack_graph` wrote."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    sides = (
        tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in spec[way])
        for way in ("inputs", "outputs")
    )
    return EngineSpec("transformer_block", *sides)


def random_inputs(spec: EngineSpec, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Inputs of a block, indices zero."""
    rng = np.random.default_rng(1)
    made: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = shape_of(tensor, sizes)
        if tensor.dtype == "float32":
            made[tensor.name] = rng.standard_normal(shape, np.float32)
        else:
            made[tensor.name] = np.zeros(shape, NUMPY_DTYPES[tensor.dtype])
    return made


def random_weights(session: Any, spec: EngineSpec) -> dict[str, Array]:
    """Inputs that the boundary does not list, about as large as real ones."""
    rng, named = np.random.default_rng(0), {t.name for t in spec.inputs}
    made: dict[str, Array] = {}
    for taken in session.get_inputs():
        if taken.name not in named:
            values = rng.standard_normal(taken.shape, np.float32)
            made[taken.name] = values * np.float32(max(taken.shape[0], 1) ** -0.5)
    return made


def shape_of(tensor: Any, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Its shape; what broadcasts has its full size, but for masks, whose rows are one."""
    return tuple(
        d if isinstance(d, int) else (1 if d.startswith("1|") else sizes[d]) for d in tensor.shape
    )
