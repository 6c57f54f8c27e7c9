"""The parity ladder on a bundle: every component's engine against the PyTorch reference, same
random inputs.

The reference is made anew from the checkpoint files that the bundle names. Weights, layouts,
graphs and offsets are all covered: the engine side is loaded exactly as for generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import UNMASKED, ComponentEntry
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array, Engine
from ltx2rt.names import TRANSFORMER_BLOCK, TRANSFORMER_BLOCK_PLAIN
from ltx2rt.weights.floats import as_dtype
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt.weights.safetensors import convert
from ltx2rt_export.component import Component, load_weights
from ltx2rt_export.example_inputs import example_inputs
from ltx2rt_export.reference import TorchEngine

HALVES = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Rung:
    """One row of the ladder. `layer` is None for components that run once."""

    component: str
    layer: int | None
    output: str
    max_abs: float
    rel_rms: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.rel_rms <= self.bound


def verify_bundle(
    bundle: Bundle,
    components: Sequence[Component],
    seed: int = 0,
    runtime: RuntimeConfig | None = None,
) -> Iterator[Rung]:
    """Compare every component of the bundle with the reference; yields one row per output.

    A repeated component is compared on its first and last layer. Sizes are small ones, as near to
    those that graphs are traced with as the engines allow.

    Args:
        bundle: the engines.
        components: made anew from the checkpoint files (`bundle.make_components`).
        seed: of the random inputs.
        runtime: how engines run, and what they may run.
    """
    loader, runtime = Loader(bundle), runtime or RuntimeConfig()
    for component in components:
        name = component.name
        if not bundle.has(name):
            continue
        sizes = allowed_sizes(component, bundle.component(name))
        inputs = example_inputs(component, np.random.default_rng(seed), sizes)
        with TorchEngine(component) as reference:
            if component.weight_binding == "initializer":
                bound = PRECISIONS[bundle.component(name).precision].tolerance
                with loader.engine(name, runtime) as engine:
                    got = run_engine(engine, inputs, {})
                yield from _rungs(name, None, reference(inputs), got, bound)
                continue
            blocks = [name]
            if name == TRANSFORMER_BLOCK and bundle.has(TRANSFORMER_BLOCK_PLAIN):
                blocks.append(TRANSFORMER_BLOCK_PLAIN)
            for block in blocks:
                entry = bundle.component(block)
                yield from _layer_rungs(block, entry, loader, runtime, component, reference, inputs)
                if entry.unmasked is not None:
                    zeros = {n: np.zeros_like(inputs[n]) for n in entry.unmasked.leaves_out}
                    yield from _layer_rungs(
                        block + UNMASKED,
                        entry,
                        loader,
                        runtime,
                        component,
                        reference,
                        {**inputs, **zeros},
                    )


def _layer_rungs(
    name: str,
    entry: ComponentEntry,
    loader: Loader,
    runtime: RuntimeConfig,
    component: Component,
    reference: Engine,
    inputs: Mapping[str, Array],
) -> Iterator[Rung]:
    """The first and the last layer that a block component serves."""
    for layer in sorted({entry.served[0], entry.served[-1]}):
        official = load_weights(component.layers[layer], frozenset())
        want = reference({**inputs, **official})
        inside = entry.layered or entry.weight_binding == "layer"
        weights = {} if inside else loader.weights(name.removesuffix(UNMASKED), layer)
        with loader.layer_engine(name, layer, runtime) as engine:
            got = run_engine(engine, inputs, weights)
        yield from _rungs(name, layer, want, got, PRECISIONS[entry.precision].tolerance)


def run_engine(
    engine: Engine, inputs: Mapping[str, Array], weights: Mapping[str, Array]
) -> dict[str, Array]:
    """What an engine makes of float32 inputs, in its own dtypes on both sides, as float32."""
    given = {
        s.name: as_dtype(inputs[s.name], s.dtype)
        for s in engine.spec.inputs
        if s.name not in weights
    }
    out = engine({**given, **weights})
    dtypes = {s.name: s.dtype for s in engine.spec.outputs}
    return {
        name: convert(array, dtypes[name], "float32", name) if dtypes[name] in HALVES else array
        for name, array in out.items()
    }


def _rungs(
    component: str,
    layer: int | None,
    want: Mapping[str, Array],
    got: Mapping[str, Array],
    bound: float,
) -> Iterator[Rung]:
    for output, reference in want.items():
        difference = got[output].astype(np.float64) - reference
        scale = float(np.sqrt(np.mean(reference.astype(np.float64) ** 2))) or 1.0
        yield Rung(
            component,
            layer,
            output,
            float(np.abs(difference).max()),
            float(np.sqrt(np.mean(difference**2))) / scale,
            bound,
        )


def allowed_sizes(component: Component, entry: ComponentEntry) -> dict[str, int]:
    """The component's trace sizes, or the nearest that its engine takes."""
    sizes = dict(component.trace)
    for bucket in entry.engines[0].buckets[:1] if entry.engines else ():
        for symbol, (low, _, high) in bucket.sizes.items():
            if symbol in sizes:
                sizes[symbol] = min(max(sizes[symbol], low), high)
    return sizes
