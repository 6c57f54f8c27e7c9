"""TensorRT's own Python layer without its libraries.

The bindings import nine C functions from three libraries. Libraries made here define those, empty,
which is enough for `tensorrt.plugin`: decorators, signature checks, symbolic shapes and launch
parameters are the vendor's own code. Nothing that would need TensorRT itself can be called. All of
it runs in a process of its own, which then has a module named `tensorrt`.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
COMPILER = shutil.which("cc") or shutil.which("gcc")


def make_libraries(directory: Path) -> None:
    """Compile the empty libraries."""
    source = directory / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    assert COMPILER is not None
    for name in LIBRARIES:
        soname = f"lib{name}.so.11"
        command = [COMPILER, "-shared", "-fPIC", str(source), f"-Wl,-soname,{soname}"]
        subprocess.run([*command, "-o", str(directory / soname)], check=True)


class StubTensorRT:
    """The process that has them."""

    def __init__(self, directory: Path) -> None:
        make_libraries(directory)
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            1, mp_context=spawn, initializer=start_worker, initargs=(directory,)
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of a worker function."""
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


def start_worker(directory: Path) -> None:
    """Worker: load the empty libraries, then the bindings under their usual name."""
    for name in LIBRARIES:
        ctypes.CDLL(str(directory / f"lib{name}.so.11"), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings
    import tensorrt.plugin  # noqa: F401


class Terms:
    """Worker: symbolic dimensions for TensorRT's shape terms, kept as text and, if known, value."""

    def __init__(self) -> None:
        import tensorrt as trt
        from tensorrt.plugin._tensor import SymIntExpr

        class Term(trt.IDimensionExpr):  # type: ignore[misc, name-defined]
            text: str
            value: int | None

            def is_constant(self) -> bool:
                return self.value is not None

            def get_constant_value(self) -> int | None:
                return self.value

        self._term = Term
        SymIntExpr._exprBuilder = self  # TensorRT sets its own while it builds

    def make(self, text: str, value: int | None = None) -> Any:
        term = self._term.__new__(self._term)  # it has no constructor
        term.text, term.value = text, value
        return term

    def constant(self, value: int) -> Any:
        return self.make(str(value), value)

    def operation(self, operation: Any, a: Any, b: Any) -> Any:
        symbol = {"SUM": "+", "SUB": "-", "PROD": "*", "FLOOR_DIV": "//"}.get(operation.name)
        if symbol is None:
            return self.make(f"{operation.name.lower()}({a.text}, {b.text})")
        if a.value is not None and b.value is not None:
            return self.constant(eval(f"{a.value} {symbol} {b.value}"))
        return self.make(f"({a.text} {symbol} {b.text})")

    def shape(self, *entries: int | str) -> Any:
        """Names are dynamic dimensions."""
        from tensorrt import plugin

        expressions = plugin.ShapeExprs(len(entries))
        for i, entry in enumerate(entries):
            term = self.make(entry) if isinstance(entry, str) else self.constant(entry)
            expressions[i] = plugin.ShapeExpr(term)
        return expressions
