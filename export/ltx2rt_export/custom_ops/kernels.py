"""The kernels behind a graph's custom nodes, compiled for the GPU that will run its engine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from ltx2rt.errors import EngineError, UnsupportedError
from ltx2rt.install import install_hint
from ltx2rt_export.custom_ops.table import ARCHITECTURES
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_kernels import build, catalog
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.spec import DOMAIN, KERNEL_DTYPES


def used_operators(graph: ExportedGraph) -> tuple[str, ...]:
    """Names of the operators whose nodes a graph holds."""
    nodes = {n.op_type for n in graph.model.graph.node if n.domain == DOMAIN}
    return tuple(name for name, o in catalog.operators().items() if o.node in nodes)


def require_compiler() -> None:
    """Know before an export whether its kernels can be compiled.

    Raises:
        UnsupportedError: Triton is missing.
    """
    if importlib.util.find_spec("triton") is None:
        raise UnsupportedError(
            "our operators need Triton to be compiled for TensorRT; install it with: "
            f"{install_hint('kernels')}, or use custom_ops='off'."
        )


def write_kernels(graph: ExportedGraph, target: str, directory: Path) -> str:
    """Compile what a graph needs on `target` (`sm90`) into `directory`; needs Triton, no GPU.

    Before TensorRT parses the graph, in the process that builds the engine:
    `ltx2rt_kernels.plugin.register_plugins(directory, arch, used_operators(graph))`.

    Returns:
        The architecture, `arch` above.

    Raises:
        EngineError: Triton refuses one.
    """
    arch, dtype = ARCHITECTURES[target], KERNEL_DTYPES[graph.dtype]
    specs = [k for k in catalog.kernels(used_operators(graph)) if k.types["T"] == dtype]
    try:
        for _ in build.write_artifacts(directory, specs, [arch]):
            pass
    except KernelError as error:
        raise EngineError(f"kernels of {graph.component.name}: {error}") from error
    return arch


def engine_facts(directory: Path) -> dict[str, Any]:
    """What an engine takes of the kernels in a directory: descriptions, with digests of the PTX.

    Cubins are left out: TensorRT gets none, and their bytes may be left to chance
    (`ltx2rt_kernels.hermetic.fixed_addresses`), which must not decide whether an engine is reused.
    """
    found = {}
    for path in sorted(directory.glob("*.*.json")):
        about = json.loads(path.read_text())
        del about["files"]["cubin"]
        found[path.stem] = about
    return found
