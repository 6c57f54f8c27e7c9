"""A graph with types for its values, and with some of them as further outputs (Polygraphy)."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
from polygraphy.backend.onnx import modify_outputs
from polygraphy.logger import G_LOGGER

from ltx2rt_export.engines.weights import weights_as_inputs


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are inputs and whose values have types: those that inference finds, a
    symbol for every size that it does not. Values of unknown rank are left out.
    """
    copy = onnx.shape_inference.infer_shapes(weights_as_inputs(model))
    known = [v for v in copy.graph.value_info if v.type.tensor_type.HasField("shape")]
    known += copy.graph.output  # `modify_outputs` looks for types there alone
    for value in known:
        for i, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value") and not size.dim_param:
                size.dim_param = f"{value.name}:{i}"
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(known)
    return copy


def marked(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of a `typed` graph that gives these tensors after its own outputs."""
    names = dict.fromkeys([*(v.name for v in model.graph.output), *tensors])
    with quiet():
        marked: onnx.ModelProto = modify_outputs(
            model, outputs=[glob.escape(name) for name in names], copy=True
        )
    return marked


@contextmanager
def quiet() -> Iterator[None]:
    """Polygraphy says nothing on stdout, where results go."""
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        yield
