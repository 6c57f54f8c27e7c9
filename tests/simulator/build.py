"""Build bundles of simulated engines: everything is the real build but the vendor's builder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch._subclasses.fake_tensor import FakeTensorMode

import ltx2rt_export.engines.build as engine_build
from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.names import LORA_COMPONENTS
from ltx2rt_export.component import Component
from ltx2rt_export.device_graphs.graph_writer import ELEMENTS
from ltx2rt_export.engines.builder import BuiltEngine, EngineRequest, OnStep
from ltx2rt_export.engines.process import Outcome
from ltx2rt_export.graph import ExportedGraph, with_dtype
from ltx2rt_export.onnx import TORCH_DTYPES, trace_shape
from tests.parity.command_line import build_flags, graphs_as_exported, ltx2rt, use_export
from tests.simulator.engine_program import Boundary, Program

DTYPE_NAMES = {element: name for name, element in ELEMENTS.items()}


def build_engine_bundle(
    source: Path,
    model: dict[str, Path],
    target: Path,
    *flags: object,
    backend: str = "tensorrt-rtx",
    precision: str = "bf16",
) -> Path:
    """Build `target` from the model's files, with the graphs of a float32 bundle of that model.

    A simulation runs. Manifest, overlays, sidecars and profiles are what `ltx2rt build` writes.

    Args:
        source: the bundle for ONNX Runtime; its graphs get the dtypes of `precision`.
        flags: further flags of `ltx2rt build`.
    """
    with pytest.MonkeyPatch.context() as patch:
        use_typed_graphs(source, patch)
        patch.setattr(engine_build, "run_build", simulate_build)
        outcome = ltx2rt(
            "build", *build_flags(model), "--backend", backend, "--precision", precision,
            "--cache-dir", target.with_name(target.name + ".cache"), "-o", target, "--quiet",
            *flags,
        )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return target


def simulate_build(
    component: str, request: EngineRequest, on_step: OnStep | None = None
) -> Outcome:
    """As `run_build`, but the engine is a file that the simulated library runs."""
    model = onnx.load(request.graph)  # external data too
    read = {name for node in model.graph.node for name in node.input}
    inputs = tuple(_boundary(v) for v in model.graph.input if v.name in read)
    outputs = tuple(_boundary(v) for v in model.graph.output)
    names = {t.name for t in inputs}
    version = engine_build.load(request.backend).__version__
    program = Program(
        backend=request.backend,
        version=version,
        targets=request.targets,
        inputs=inputs,
        outputs=outputs,
        profiles=tuple(
            {n: tuple(tuple(s) for s in r) for n, r in profile.items() if n in names}
            for profile in request.profiles
        ),
        graph=model.SerializeToString(),
    )
    data = program.to_bytes()
    Path(request.output).write_bytes(data)
    if on_step is not None:
        on_step("simulated", 1, 1)
    built = BuiltEngine(
        version=version,
        inputs=tuple((t.name, t.dtype, _numbers(t)) for t in inputs),
        outputs=tuple((t.name, t.dtype, _numbers(t)) for t in outputs),
        build_s=0.0,
        engine_bytes=len(data),
    )
    return Outcome(built, peak_memory_bytes=len(data))


def use_typed_graphs(bundle: Path, patch: pytest.MonkeyPatch) -> None:
    """Exporting takes this bundle's float32 graphs and gives their boundary and weights the dtypes
    that a trace in 16 bits would: the nodes between stay those of float32, which is what runs.
    """
    entries, graph = read_manifest(bundle).components, graphs_as_exported(bundle)

    def export(component: Component, dtype: str = "float32") -> ExportedGraph:
        entry, model = entries[component.name], graph(component)
        names = tuple(component.module.state_dict())
        if dtype != "float32":
            component = typed_component(component, dtype)
            _type_boundary(model, component)
            _type_weights(model, component, dtype)
        return ExportedGraph(component, model, names, frozenset(entry.transposed), dtype)

    use_export(export, patch)


def typed_component(component: Component, dtype: str) -> Component:
    """The component with the boundary that `export_component` gives it in a dtype: outputs have the
    dtype that the module computes, without a trace to ONNX.
    """
    if component.name not in LORA_COMPONENTS:
        return component  # float32 outside
    component = with_dtype(component, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = {
            s.name: torch.zeros(trace_shape(s, component), dtype=TORCH_DTYPES[s.dtype])
            for s in component.inputs
        }
        weights = {
            n: torch.empty(w.shape, dtype=TORCH_DTYPES[dtype] if w.is_floating_point() else w.dtype)
            for n, w in component.module.state_dict().items()
        }
        results = torch.func.functional_call(component.module, weights, kwargs=inputs)
    dtypes = {d: n for n, d in TORCH_DTYPES.items()}
    outputs = tuple(
        dataclasses.replace(spec, dtype=dtypes[r.dtype])
        for spec, r in zip(component.outputs, results, strict=True)
    )
    return dataclasses.replace(component, outputs=outputs)


def _type_boundary(model: onnx.ModelProto, component: Component) -> None:
    values = {v.name: v for v in (*model.graph.input, *model.graph.output)}
    for spec in (*component.inputs, *component.outputs):
        values[spec.name].type.tensor_type.elem_type = ELEMENTS[spec.dtype]


def _type_weights(model: onnx.ModelProto, component: Component, dtype: str) -> None:
    names = set(component.module.state_dict())
    for value in model.graph.input:
        if value.name in names and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = ELEMENTS[dtype]
    for tensor in model.graph.initializer:
        if tensor.name in names and tensor.data_type == TensorProto.FLOAT:
            tensor.data_type = ELEMENTS[dtype]


def _boundary(value: onnx.ValueInfoProto) -> Boundary:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return Boundary(value.name, DTYPE_NAMES[tensor.elem_type], shape)


def _numbers(tensor: Boundary) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else -1 for d in tensor.shape)
