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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
import torch.fx.experimental._config as shape_config
from onnx import TensorProto
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ltx2rt.engine import TensorSpec
from ltx2rt.names import LORA_COMPONENTS
from ltx2rt_export.component import Component
from ltx2rt_export.modules import loop_ops, shape_ops, snake
from ltx2rt_export.optimize import optimize

OPSET = 20

#: location written for injected initializers; the runtime never opens a file of this name
INJECTED = "injected-by-ltx2rt"

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


HALF_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

#: ONNX element type -> dtype name of manifests and engines
DTYPE_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT4E2M1: "float4_e2m1",
    TensorProto.INT8: "int8",
    TensorProto.INT4: "int4",
}


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A component's graph.

    Attributes:
        component: its boundary has the dtypes of this graph.
        model: the ONNX model; weights are inputs or external initializers, by their state-dict
            names.
        weights: state-dict names in graph order.
        transposed: weights that the graph wants as `[in, out]` although files hold `[out, in]`.
        dtype: of weights and activations that the module does not hold in float32 itself.
    """

    component: Component
    model: onnx.ModelProto
    weights: tuple[str, ...]
    transposed: frozenset[str]
    dtype: str = "float32"


#: component and dtype to graph: `export_component`, or a cache before it
Export = Callable[[Component, str], ExportedGraph]


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
    """Trace `component.module` and return its graph, with symbolic sizes as in its specs.

    In a 16-bit `dtype` every cast that the module makes (norms, timesteps and statistics in
    float32) becomes a node, so the graph alone decides every dtype. The transformer's boundary
    takes that dtype, all others stay float32; so do inputs that the option `float32_inputs` names.

    Sizes are traced "obliviously": nothing is specialised for 0 or 1, so the graph also holds for
    single frames and tokens, and tracing symbolic shapes is about eight times as fast.
    """
    inside = {s.name: TORCH_DTYPES[s.dtype] for s in with_dtype(component, dtype).inputs}
    if component.name in LORA_COMPONENTS:
        component = with_dtype(component, dtype)
    state = component.module.state_dict()
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
    flat = _Flat(component.module, inside, weights)
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


def with_dtype(component: Component, dtype: str) -> Component:
    """The component with float inputs of `dtype`, but for those that always are float32."""
    exact = component.options.get("float32_inputs", ())
    return dataclasses.replace(
        component,
        inputs=tuple(
            dataclasses.replace(spec, dtype=dtype)
            if spec.dtype == "float32" and spec.name not in exact
            else spec
            for spec in component.inputs
        ),
    )


def trace_shape(spec: TensorSpec, component: Component) -> tuple[int, ...]:
    """Sizes used for tracing; a `1|X` dimension is traced as 1 and broadcasts."""
    return tuple(
        d if isinstance(d, int) else 1 if d.startswith("1|") else component.trace[d]
        for d in spec.shape
    )


def fold_weight_transposes(model: onnx.ModelProto, weights: Sequence[str]) -> frozenset[str]:
    """Remove `Transpose(perm=[1, 0])` of weight inputs: the graph then takes those weights as
    `[in, out]`.

    A transposed weight input costs a kernel on every call; the runtime lays the weight out once
    instead.
    """
    graph = model.graph
    uses: dict[str, list[onnx.NodeProto]] = {name: [] for name in weights}
    for node in graph.node:
        for name in node.input:
            if name in uses:
                uses[name].append(node)
    folded: set[str] = set()
    renamed: dict[str, str] = {}
    for name, nodes in uses.items():
        if nodes and all(
            n.op_type == "Transpose" and list(n.attribute[0].ints) == [1, 0] for n in nodes
        ):
            folded.add(name)
            renamed.update({n.output[0]: name for n in nodes})
    kept = [n for n in graph.node if not (n.op_type == "Transpose" and n.input[0] in folded)]
    for node in kept:
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]
    del graph.node[:]
    graph.node.extend(kept)
    for value in graph.input:
        if value.name in folded:
            dims = value.type.tensor_type.shape.dim
            dims[0].dim_value, dims[1].dim_value = dims[1].dim_value, dims[0].dim_value
    return frozenset(folded)


def inputs_to_initializers(model: onnx.ModelProto, weights: Sequence[str]) -> None:
    """Turn weight inputs into initializers whose values the runtime injects."""
    graph = model.graph
    names = set(weights)
    values = {v.name: v for v in graph.input if v.name in names}
    kept = [v for v in graph.input if v.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    for name in weights:
        tensor_type = values[name].type.tensor_type
        tensor = TensorProto(
            name=name,
            data_type=tensor_type.elem_type,
            dims=[d.dim_value for d in tensor_type.shape.dim],
            data_location=TensorProto.EXTERNAL,
        )
        location = tensor.external_data.add()
        location.key, location.value = "location", INJECTED
        graph.initializer.append(tensor)


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
