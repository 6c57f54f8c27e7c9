"""The tiny pipeline on ONNX Runtime and on the PyTorch reference: parity first, then interleaved
timing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import percentiles
from ltx2rt.backends.host_stack import HostStack
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.source import ModelSource
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array, Engine
from ltx2rt.errors import OptionError
from ltx2rt.lora.files import Lora
from ltx2rt.names import StackNames
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt_export.bundle import inputs_in, make_components, open_inputs
from ltx2rt_export.reference import TorchEngine, component_stack
from tests.tolerances import PIPELINE_LATENT_REL_L2

CONFIG = GenerationConfig(
    prompt="A quiet lake.", height=256, width=384, num_frames=25, tiling="none"
)
ROUNDS = 5


class TorchSource:
    """The PyTorch reference behind the face of a bundle."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        inputs = inputs_in(bundle.manifest.build, folder)
        made = make_components(open_inputs(inputs), inputs.loras, folder)
        self._components = {c.name: c for c in made}
        self._bundle = bundle
        self.model = bundle.model
        self.bundle_id = self.text_encoder_id = "torch"

    def has(self, *names: str) -> bool:
        return all(n in self._components for n in names)

    def context_widths(self) -> Mapping[str, int]:
        return self._bundle.context_widths()

    def options(self, name: str) -> Mapping[str, Any]:
        return self._bundle.options(name)

    def check_loras(self, loras: Sequence[Lora]) -> None:
        if loras:
            raise OptionError("the benchmark measures the model without run-time LoRAs")

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        return ()

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        return TorchEngine(self._components[name])

    def stack(
        self, names: StackNames, runtime: RuntimeConfig, loras: Sequence[Lora] = ()
    ) -> HostStack:
        parts = (self._components[n] for n in names.components if self.has(n))
        return component_stack(names, parts, TorchEngine)

    def tokenizer_path(self) -> Path:
        return self._bundle.tokenizer_path()


def run(pipe: DistilledPipeline) -> tuple[float, Mapping[str, Array]]:
    """One clip, decoded; engines are loaded already."""
    pipe.engines.contexts = None  # the prompt is encoded every time
    start = time.perf_counter()
    clip = pipe(CONFIG)
    for _ in clip.float_frames():
        pass
    _ = clip.audio
    return time.perf_counter() - start, clip.latents


def compare(folder: Path) -> dict[str, Any]:
    """Gate on parity of every stage's latents, then time both, alternating; loading is excluded."""
    bundle = open_bundle(folder)
    sources: dict[str, Bundle | ModelSource] = {
        "onnxruntime": bundle,
        "torch": TorchSource(bundle, folder),
    }
    runtime = RuntimeConfig(residency="resident")
    pipes = {name: DistilledPipeline(source, runtime) for name, source in sources.items()}
    latents = {name: run(pipe)[1] for name, pipe in pipes.items()}
    error = max(
        float(np.linalg.norm(latents["onnxruntime"][k] - want) / np.linalg.norm(want))
        for k, want in latents["torch"].items()
    )
    if error > PIPELINE_LATENT_REL_L2:
        raise SystemExit(
            f"no timing: latents differ by {error:.2e}, allowed {PIPELINE_LATENT_REL_L2:.0e}"
        )
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(ROUNDS):
        for name, pipe in pipes.items():
            seconds[name].append(run(pipe)[0])
    results = {name: percentiles(values) for name, values in seconds.items()}
    return {
        **results["onnxruntime"],
        "torch": results["torch"],
        "ratio": results["torch"]["median_s"] / results["onnxruntime"]["median_s"],
        "gate_rel_l2": error,
        "torch_threads": torch.get_num_threads(),
        "config": dataclasses.asdict(CONFIG),
    }
