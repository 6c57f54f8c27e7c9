"""Random inputs of a component, each tensor in its range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ltx2rt.engine import Array, TensorSpec
from ltx2rt_export.component import Component


def example_inputs(
    component: Component, rng: np.random.Generator, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Random inputs in each tensor's range, at the component's trace sizes or those given."""
    sizes = sizes or component.trace
    return {spec.name: _example(spec, component, rng, sizes) for spec in component.inputs}


def _example(
    spec: TensorSpec, component: Component, rng: np.random.Generator, sizes: Mapping[str, int]
) -> Array:
    shape = tuple(
        d if isinstance(d, int) else 1 if d.startswith("1|") else sizes[d] for d in spec.shape
    )
    name = spec.name
    if name.endswith("_timestep_index"):
        rows = sizes["Uv" if name.startswith("video") else "Ua"]
        return rng.integers(0, rows, shape)
    if name == "input_ids":
        return rng.integers(0, component.options["vocab_size"], shape)
    if name == "attention_mask":
        mask = np.ones(shape, np.int64)
        mask[:, : shape[1] // 3] = 0
        return mask
    if name.endswith(("_keep", "_enabled")):
        return np.ones(shape, np.float32)
    if name.endswith("_bias"):
        return np.zeros(shape, np.float32)
    if name.endswith(("_sigma", "_timestep_values")):
        return rng.uniform(0, 1, shape).astype(np.float32)
    if name.endswith(("_cos", "_sin")):
        angle = np.random.default_rng(0).uniform(0, 6.28, shape)
        return (np.cos(angle) if name.endswith("_cos") else np.sin(angle)).astype(np.float32)
    if name in ("video", "waveform"):
        return rng.uniform(-1, 1, shape).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)
