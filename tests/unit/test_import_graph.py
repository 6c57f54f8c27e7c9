"""No module imports itself in a circle: not through others, not inside functions, not for types."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: package -> the folder that holds it
PACKAGES = {
    "ltx2rt": ROOT,
    "ltx2rt_export": ROOT / "export",
    "ltx2rt_kernels": ROOT / "kernels",
    "benchmarks": ROOT,
}

Graph = dict[str, set[str]]


def modules(package: str, folder: Path) -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in (folder / package).rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of `known` that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module


def graph_of(files: Mapping[str, Path]) -> Graph:
    return {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")), files)) - {name}
        for name, path in files.items()
    }


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan 1972, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []
    for start in graph:
        if start in index:
            continue
        work = [(start, iter(sorted(graph[start])))]
        index[start] = low[start] = len(index)
        stack.append(start)
        while work:
            name, rest = work[-1]
            inner = next(rest, None)
            if inner is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    group = [stack.pop()]
                    while group[-1] != name:
                        group.append(stack.pop())
                    if len(group) > 1:
                        found.append(sorted(group))
            elif inner not in index:
                index[inner] = low[inner] = len(index)
                stack.append(inner)
                work.append((inner, iter(sorted(graph[inner]))))
            elif inner in stack:
                low[name] = min(low[name], index[inner])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_circle_of_imports(package: str) -> None:
    files = modules(package, PACKAGES[package])
    assert len(files) > 10
    # the package itself names what it exports, for type checkers; modules take only its version
    assert circles({k: v - {package} for k, v in graph_of(files).items()}) == []


def test_a_circle_is_seen() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"d"}}
    assert circles(graph) == [["a", "b", "c"]]


def test_imports_for_types_and_inside_functions_count() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from p.a import X
def f():
    from p import b
    import p.c
"""
    known = {name: Path() for name in ("p", "p.a", "p.b", "p.c")}
    assert set(imported(ast.parse(source), known)) == {"p.a", "p.b", "p.c"}
