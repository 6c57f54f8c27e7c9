"""Export a component to ONNX from fake tensors: no weight is read, no memory is spent on them.

Every weight becomes a graph input while tracing. Afterwards it is either left one
(`weight_binding="input"`: the transformer block, one graph for all layers) or turned into an
initializer with external data that the runtime injects (`"initializer"`). Opset 20, plain
operators: what fuses and what breaks is in docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import onnx
import torch
import torch.fx.experimental._config as shape_config
from onnx import TensorProto
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ltx2rt.engine import TensorSpec
from ltx2rt.names import LORA_COMPONENTS
from ltx2rt_export.component import Component
from ltx2rt_export.graph import (
    DTYPE_NAMES,
    HALF_FLOATS,
    ExportedGraph,
    fold_weight_transposes,
    inputs_to_initializers,
    with_dtype,
)
from ltx2rt_export.modules import loop_ops, shape_ops, snake
from ltx2rt_export.optimize import optimize

OPSET = 20

#: how ONNX writes our own operators
TRANSLATIONS = shape_ops.TRANSLATIONS | snake.TRANSLATIONS | loop_ops.TRANSLATIONS

#: bodies of the local functions that `TRANSLATIONS` calls
FUNCTIONS = loop_ops.FUNCTIONS | snake.FUNCTIONS

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


class _Flat(nn.Module):
    """Calls the module with (inputs..., weights...) so that weights are traced as inputs."""

    def __init__(
        self, module: nn.Module, inputs: Mapping[str, torch.dtype], weights: Sequence[str]
    ) -> None:
        super().__init__()
        self._call = (module, dict(inputs), tuple(weights))  # in a tuple: not a submodule

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        module, inputs, weights = self._call
        values = (t.to(d) for t, d in zip(tensors, inputs.values(), strict=False))
        named = dict(zip(inputs, values, strict=True))
        state = dict(zip(weights, tensors[len(inputs) :], strict=True))
        outputs: tuple[torch.Tensor, ...] = torch.func.functional_call(module, state, kwargs=named)
        return outputs


def export_component(component: Component, dtype: str = "float32") -> ExportedGraph:
    """Trace `component.network` and return its graph, with symbolic sizes as in its specs.

    In a 16-bit `dtype` every cast that the module makes (norms, timesteps and statistics in
    float32) becomes a node, so the graph alone decides every dtype. The transformer's boundary
    takes that dtype, all others stay float32; so do inputs that the option `float32_inputs` names.

    Sizes are traced "obliviously": nothing is specialised for 0 or 1, so the graph also holds for
    single frames and tokens, and tracing symbolic shapes is about eight times as fast.
    """
    inside = {s.name: TORCH_DTYPES[s.dtype] for s in with_dtype(component, dtype).inputs}
    if component.name in LORA_COMPONENTS:
        component = with_dtype(component, dtype)
    state = component.network.state_dict()
    weights = tuple(state)
    input_names = [spec.name for spec in component.inputs]
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = [
            torch.zeros(trace_shape(spec, component), dtype=TORCH_DTYPES[spec.dtype])
            for spec in component.inputs
        ]
        arguments += [
            torch.empty(
                tuple(w.shape), dtype=TORCH_DTYPES[dtype] if w.is_floating_point() else w.dtype
            )
            for w in state.values()
        ]
    dynamic = [
        {
            i: torch.export.Dim.DYNAMIC
            for i, d in enumerate(spec.shape)
            if isinstance(d, str) and not d.startswith("1|")
        }
        for spec in component.inputs
    ]
    flat = _Flat(component.network, inside, weights)
    # `patch` is added to the module when it is imported
    patched = shape_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with _quiet(), patched:
        program = torch.export.export(
            flat,
            tuple(arguments),
            dynamic_shapes=(tuple([*dynamic, *({} for _ in weights)]),),
            strict=False,
        )
        program.example_inputs = None  # else every guard is compared with every input
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # done below
            custom_translation_table=TRANSLATIONS,
            verbose=False,
            input_names=[*input_names, *weights],
        )
    if exported is None:
        raise RuntimeError(f"torch.onnx.export returned nothing for {component.name}")
    optimize(exported.model)
    for value, spec in zip(exported.model.graph.outputs, component.outputs, strict=True):
        value.name = spec.name  # only now: until then two outputs may be one value
    model = exported.model_proto
    component = _with_output_dtypes(component, model)
    _strip(model)
    snake.gather_parameters(model)
    _add_functions(model)
    _name_dimensions(model, (*component.inputs, *component.outputs))
    transposed: frozenset[str] = frozenset()
    if component.weight_binding == "input":
        transposed = fold_weight_transposes(model, weights)
    else:
        inputs_to_initializers(model, weights)
    return ExportedGraph(component, model, weights, transposed, dtype)


def _with_output_dtypes(component: Component, model: onnx.ModelProto) -> Component:
    """The component with the output dtypes of the graph; outside the transformer they become
    float32.
    """
    for value in model.graph.output:
        elem = value.type.tensor_type
        if elem.elem_type not in HALF_FLOATS or component.name in LORA_COMPONENTS:
            continue
        inner = f"{value.name}_{DTYPE_NAMES[elem.elem_type]}"
        for node in model.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == value.name:
                        names[i] = inner
        cast = onnx.helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT)
        model.graph.node.append(cast)
        elem.elem_type = TensorProto.FLOAT
    outputs = tuple(
        dataclasses.replace(spec, dtype=DTYPE_NAMES[value.type.tensor_type.elem_type])
        for value, spec in zip(model.graph.output, component.outputs, strict=True)
    )
    return dataclasses.replace(component, outputs=outputs)


def trace_shape(spec: TensorSpec, component: Component) -> tuple[int, ...]:
    """Sizes used for tracing; a `1|X` dimension is traced as 1 and broadcasts."""
    return tuple(
        d if isinstance(d, int) else 1 if d.startswith("1|") else component.trace[d]
        for d in spec.shape
    )


def _name_dimensions(model: onnx.ModelProto, specs: Sequence[TensorSpec]) -> None:
    values = {v.name: v for v in (*model.graph.input, *model.graph.output)}
    for spec in specs:
        tensor_type = values[spec.name].type.tensor_type
        del tensor_type.shape.dim[:]
        for size in spec.shape:
            dim = tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            else:
                dim.dim_param = size.replace("|", "_or_")


def _add_functions(model: onnx.ModelProto) -> None:
    """Give the model the bodies of the local functions that it calls."""
    used = {(n.domain, n.op_type) for n in model.graph.node} & FUNCTIONS.keys()
    model.functions.extend(FUNCTIONS[name] for name in sorted(used))
    known = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(
        onnx.helper.make_opsetid(domain, 1) for domain in sorted({d for d, _ in used} - known)
    )


def _strip(model: onnx.ModelProto) -> None:
    """Drop what makes graphs large and machine dependent: traces, inferred shapes,
    documentation.
    """
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and notices about packages that we do not use."""
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript")
    levels = [(logging.getLogger(n), logging.getLogger(n).level) for n in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
