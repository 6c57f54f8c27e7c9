"""Our own Python as digests: what decides a graph, a weight file or an engine."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import ltx2rt
import ltx2rt_export

#: what decides a graph besides the modules of its component
EXPORTERS = ("ltx2rt_export.graph", "ltx2rt_export.onnx", "ltx2rt_export.optimize")

#: where networks are
NETWORKS = "ltx2rt_export.modules."


def graph_sources(modules: Iterable[str]) -> dict[str, str]:
    """Module -> digest of its text, of all that decide a graph: the exporter, and of what these
    modules import the networks.
    """
    modules = tuple(modules)
    reached = {name for name in imported_modules(modules) if name.startswith(NETWORKS)}
    return source_digests({*reached, *modules, *EXPORTERS})


def source_digests(modules: Iterable[str]) -> dict[str, str]:
    """Module -> digest of its text; "" for one that is not there any more."""
    return {name: source_digest(name) for name in sorted(modules)}


@cache
def source_digest(module: str) -> str:
    """Of the text of a module of ours, or of one that is loaded; the same on systems with other
    line ends.
    """
    path = _sources().get(module)
    if path is None:
        origin = getattr(sys.modules.get(module), "__file__", None)
        path = None if origin is None else Path(origin)
    if path is None:
        return ""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


def sources_sha256() -> str:
    """Digest of all our Python."""
    return _digest(_sources())


def imported_modules(starts: Iterable[str]) -> dict[str, Path]:
    """These modules and all of ours that they import, with their files."""
    sources = _sources()
    reached: dict[str, Path] = {}
    waiting = [*starts]
    while waiting:
        name = waiting.pop()
        if name in sources and name not in reached:
            reached[name] = sources[name]
            waiting += _imports(sources[name])
    return reached


@cache
def _sources() -> dict[str, Path]:
    """Dotted name -> file, of our packages."""
    found = {}
    for package in (ltx2rt, ltx2rt_export):
        for folder in map(Path, package.__path__):
            for path in folder.rglob("*.py"):
                parts = (package.__name__, *path.relative_to(folder).with_suffix("").parts)
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """What a file imports, anywhere in it; of `from a import b`, both `a` and `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(names)


def _digest(sources: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(sources.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
