"""What a library shows: its enumerations, and the properties and methods of its classes with the
names of their arguments. For the real bindings these are read from their docstrings.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

ENUMERATIONS = (
    "DataType",
    "TensorIOMode",
    "TensorLocation",
    "ExecutionContextAllocationStrategy",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
)
CLASSES = (
    "ILogger",
    "Logger",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "IRuntimeConfig",
    "IRuntimeCache",
    "IHostMemory",
)

#: enumeration -> member -> value; class -> attribute -> argument names of every overload, or None
#: for what is not called
Face = dict[str, dict[str, Any]]


def real_face(module: str) -> Face:
    """The face of vendor bindings that can be imported here."""
    library = importlib.import_module(module)
    face: Face = {}
    for name in ENUMERATIONS:
        if hasattr(library, name):
            members = getattr(library, name).__members__
            face[name] = {n: int(m) for n, m in members.items()}
    for name in CLASSES:
        kind = getattr(library, name, None)
        if kind is None:
            continue
        face[name] = {
            n: None
            if isinstance(inspect.getattr_static(kind, n), property)
            else _overloads(kind, n)
            for n in dir(kind)
            if not n.startswith("_") or n == "__init__"
        }
    return face


def _overloads(kind: Any, name: str) -> list[list[str]] | None:
    text = getattr(kind, name).__doc__ or ""
    found = re.findall(rf"^(?:\d+\. )?{name}\((self: .*)\)", text, re.MULTILINE)
    return [_arguments(line) for line in found] or None  # None: a value or a class


def _arguments(line: str) -> list[str]:
    """Names in `self: A, name: str, sizes: list[B, C] = <D.E: 1>`."""
    flat = line
    while (shorter := re.sub(r"\[[^][]*\]|<[^<>]*>", "", flat)) != flat:
        flat = shorter
    return [part.split(":")[0].strip() for part in flat.split(",")][1:]


def simulated_face(library: Any) -> Face:
    """The face of a simulated library."""
    face: Face = {
        name: {m.name: int(m) for m in getattr(library, name)}
        for name in ENUMERATIONS
        if hasattr(library, name)
    }
    for name in CLASSES:
        if (kind := getattr(library, name, None)) is not None:
            face[name] = {n: _signature(kind, n) for n in dir(kind) if _is_shown(kind, n)}
    return face


def _is_shown(kind: Any, name: str) -> bool:
    if name == "__init__":
        return kind.__name__ in ("ILogger", "Logger", "Runtime")  # the others are never made
    return not name.startswith("_")


def _signature(kind: Any, name: str) -> list[str] | None:
    value = inspect.getattr_static(kind, name)
    if not inspect.isfunction(value):
        return None
    return list(inspect.signature(value).parameters)[1:]


def differences(simulated: Face, real: Face) -> list[str]:
    """What the simulated library has that the real one has not, or has otherwise."""
    found = []
    for owner, attributes in simulated.items():
        for name, arguments in attributes.items():
            where = f"{owner}.{name}"
            if name not in real.get(owner, {}):
                found.append(f"{where} is not in the bindings")
            elif isinstance(arguments, list):
                overloads = real[owner][name]
                if not isinstance(overloads, list) or arguments not in overloads:
                    found.append(f"{where}{tuple(arguments)} is {overloads} in the bindings")
            elif isinstance(real[owner][name], list) or (
                isinstance(arguments, int) and real[owner][name] != arguments
            ):
                found.append(f"{where} is {real[owner][name]} in the bindings, not {arguments}")
    return found
