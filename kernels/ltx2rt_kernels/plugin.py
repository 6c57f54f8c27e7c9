"""TensorRT plugins of the operators: shapes, types and precompiled PTX, embedded in the engine.

One generic layer serves every operator, because `Operator` and `KernelSpec` hold all that TensorRT
asks for. The kernels are compiled ahead of time (`aot_impl`), so an engine needs neither Python nor
this package when it runs. TensorRT-RTX has no usable plugins: there the ONNX function body serves.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any

from ltx2rt_kernels import catalog
from ltx2rt_kernels.errors import KernelError, raise_problems
from ltx2rt_kernels.expressions import evaluate
from ltx2rt_kernels.launch import Description
from ltx2rt_kernels.spec import DOMAIN, KernelSpec, Operator, TensorSpec

#: our dtype names to members of `tensorrt.DataType`
DATA_TYPES = {
    "fp32": "FLOAT",
    "fp16": "HALF",
    "bf16": "BF16",
    "fp8e4nv": "FP8",
    "i32": "INT32",
    "i64": "INT64",
}


def register_plugins(
    artifacts: Path, arch: str, names: Sequence[str] | None = None, *, lazy: bool = False
) -> tuple[str, ...]:
    """Register operators with TensorRT, before a graph that holds their nodes is parsed.

    Args:
        artifacts: directory that `ltx2rt_kernels.build` wrote.
        arch: architecture of the GPU that will run the engine (`"90a"`); TensorRT takes PTX, and
            the PTX of an `a` architecture runs on that one only.
        names: operators; all without it.
        lazy: check signatures only and leave TensorRT's registry alone.

    Returns:
        Plugin names, `ltx2rt::<node>`.

    Raises:
        KernelError: TensorRT is missing, or an operator is unknown.
    """
    trt, trtp = _tensorrt()
    chosen = catalog.operators()
    if names is not None:
        catalog.kernels(names)  # refuses unknown names
        chosen = {name: chosen[name] for name in names}
    return tuple(_register(trt, trtp, o, artifacts, arch, lazy) for o in chosen.values())


def _tensorrt() -> tuple[Any, Any]:
    try:
        tensorrt = importlib.import_module("tensorrt")
        plugin = importlib.import_module("tensorrt.plugin")
    except ImportError as error:
        raise KernelError(
            f"plugins need TensorRT ({error}); install ltx2rt with its extra tensorrt"
        ) from None
    return tensorrt, plugin


def _register(
    trt: Any, trtp: Any, operator: Operator, artifacts: Path, arch: str, lazy: bool
) -> str:
    name = f"{DOMAIN}::{operator.node}"
    shapes = shape_function(trt, trtp, operator)
    trtp.register(name, lazy_register=lazy)(shapes)
    trtp.aot_impl(name)(kernel_function(trt, trtp, operator, artifacts, arch))
    return name


def shape_function(trt: Any, trtp: Any, operator: Operator) -> Callable[..., tuple[Any, ...]]:
    """What `tensorrt.plugin.register` wants: input descriptors to output descriptors."""

    def describe(*tensors: Any, **attributes: int | float) -> tuple[Any, ...]:
        types = _types(trt, operator, tensors)
        sizes = _sizes(trtp, operator, tensors, attributes)
        return tuple(
            trtp.from_shape_expr(
                tuple(_evaluate(trtp, entry, sizes) for entry in output.shape),
                _data_type(trt, types.get(output.dtype, output.dtype)),
            )
            for output in operator.outputs
        )

    outputs = GenericAlias(tuple, (trtp.TensorDesc,) * len(operator.outputs))
    describe.__signature__ = _signature(trtp, operator, (), outputs)  # type: ignore[attr-defined]
    return describe


def kernel_function(
    trt: Any, trtp: Any, operator: Operator, artifacts: Path, arch: str
) -> Callable[..., tuple[str, str, Any, Any]]:
    """What `tensorrt.plugin.aot_impl` wants: kernel name, PTX, launch parameters, integers."""

    def implement(*arguments: Any) -> tuple[str, str, Any, Any]:
        count = len(operator.inputs)
        tensors, values = arguments[:count], arguments[count:-2]
        attributes = dict(zip(operator.attributes, values, strict=True))
        types = _types(trt, operator, tensors)
        sizes = _sizes(trtp, operator, tensors, attributes)
        spec = select_kernel(operator, arch, types, _constants(sizes), attributes)
        path = artifacts / f"{spec.artifact_name(arch)}.json"
        about = Description.read(path)
        known = {**{k: trtp.ShapeExpr(v) for k, v in about.tiles.items()}, **sizes}
        launch = trtp.KernelLaunchParams()
        for axis, text in zip(("grid_x", "grid_y", "grid_z"), about.grid, strict=True):
            setattr(launch, axis, _evaluate(trtp, text, known))
        launch.block_x = about.threads
        launch.shared_mem = about.shared
        extra = trtp.SymIntExprs(len(about.scalars))
        for i, value in enumerate(about.scalars.values()):
            extra[i] = trtp.SymInt32(_evaluate(trtp, value, known))
        return about.entry, path.with_suffix(".ptx").read_text(), launch, extra

    parameter = inspect.Parameter
    kind = parameter.POSITIONAL_OR_KEYWORD
    last = (
        parameter("outputs", kind, annotation=GenericAlias(tuple, (trtp.TensorDesc,))),
        parameter("tactic", kind, annotation=int),
    )
    text = str | bytes
    result = GenericAlias(tuple, (text, text, trtp.KernelLaunchParams, trtp.SymIntExprs))
    implement.__signature__ = _signature(trtp, operator, last, result)  # type: ignore[attr-defined]
    return implement


def select_kernel(
    operator: Operator,
    arch: str,
    types: Mapping[str, str],
    constants: Mapping[str, int],
    attributes: Mapping[str, int | float],
) -> KernelSpec:
    """The shipped kernel for these types, constant sizes and attributes.

    Raises:
        KernelError: there is none; names what there is.
    """
    candidates = [k for k in catalog.kernels([operator.name]) if arch in k.configs]
    for kernel in candidates:
        wanted = {**operator.attributes, **kernel.attributes}
        same_sizes = all(constants.get(n) == v for n, v in kernel.sizes.items())
        # an ONNX float is 32 bits wide
        same_attributes = all(
            math.isclose(attributes[n], v, rel_tol=1e-6) for n, v in wanted.items()
        )
        if kernel.types == types and same_sizes and same_attributes:
            return kernel
    asked = ", ".join(f"{n}={v}" for n, v in {**types, **constants, **attributes}.items())
    there = ", ".join(k.variant for k in candidates) or "none"
    raise KernelError(
        f"no {operator.name} kernel for {asked} on {arch}; there are: {there}; other sizes must "
        "keep the function body"
    )


def _signature(
    trtp: Any, operator: Operator, last: Sequence[inspect.Parameter], result: Any
) -> inspect.Signature:
    """Typed parameters: tensors, attributes, `last`. TensorRT reads types from the signature."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    tensors = [inspect.Parameter(t.name, kind, annotation=trtp.TensorDesc) for t in operator.inputs]
    attributes = [
        inspect.Parameter(n, kind, annotation=type(v)) for n, v in operator.attributes.items()
    ]
    return inspect.Signature([*tensors, *attributes, *last], return_annotation=result)


def _types(trt: Any, operator: Operator, tensors: Sequence[Any]) -> dict[str, str]:
    """Dtype of every type variable; tensors that share one must agree."""
    names = {getattr(trt.DataType, member): name for name, member in DATA_TYPES.items()}
    types: dict[str, str] = {}
    problems = []
    for spec, tensor in zip(operator.inputs, tensors, strict=True):
        actual = names.get(tensor.dtype, str(tensor.dtype))
        if spec.dtype in DATA_TYPES:
            expected = spec.dtype
        else:
            expected = types.setdefault(spec.dtype, actual)
        if actual != expected:
            problems.append(f"{spec.name} is {actual}, expected {expected}")
    raise_problems(f"{DOMAIN}::{operator.node}", problems)
    return types


def _sizes(
    trtp: Any,
    operator: Operator,
    tensors: Sequence[Any],
    attributes: Mapping[str, int | float],
) -> dict[str, Any]:
    """Symbolic value of every dimension name."""
    sizes = {
        size: trtp.ShapeExpr(int(attributes[name]))
        for size, name in operator.attribute_sizes.items()
    }
    for spec, tensor in zip(operator.inputs, tensors, strict=True):
        _check_rank(operator, spec, tensor)
        for i, entry in enumerate(spec.shape):
            if entry.isidentifier():
                sizes.setdefault(entry, tensor.shape_expr[i])
    return sizes


def _check_rank(operator: Operator, spec: TensorSpec, tensor: Any) -> None:
    if len(tensor.shape_expr) != len(spec.shape):
        raise KernelError(
            f"{DOMAIN}::{operator.node}: {spec.name} has {len(tensor.shape_expr)} dimensions where "
            f"[{', '.join(spec.shape)}] has {len(spec.shape)}"
        )


def _constants(sizes: Mapping[str, Any]) -> dict[str, int]:
    return {n: s.constant_value() for n, s in sizes.items() if s.is_constant}


def _evaluate(trtp: Any, text: str, sizes: Mapping[str, Any]) -> Any:
    functions = {"cdiv": trtp.cdiv, "max": trtp.max, "min": trtp.min}
    return evaluate(text, sizes, functions, trtp.ShapeExpr)


def _data_type(trt: Any, dtype: str) -> Any:
    return getattr(trt.DataType, DATA_TYPES[dtype])
