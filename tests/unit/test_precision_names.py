"""A precision is one row: its name stands nowhere else, so nothing else can list precisions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltx2rt.weights.precision import PRECISIONS
from tests.unit.test_house_rules import ROOT, tracked

#: the row table, what a build adds to its rows, and official files, which are called by them
TABLES = {
    "ltx2rt/hub/catalog.py",
    "ltx2rt/weights/precision.py",
    "export/ltx2rt_export/quantize/rewrites.py",
}
#: benchmark cases, which are named by what varies
CASES = {
    "benchmarks/attention_accuracy.py",
    "benchmarks/block_on_gpu.py",
    "benchmarks/engines.py",
    "benchmarks/lease/answers.py",
    "benchmarks/lease/block.py",
}
#: Triton's dtypes have some of the same names
TRITON = ("kernels/", "benchmarks/kernels/")
#: formats of stored weights, of which two share their name with a precision
FORMATS = {
    "ltx2rt/weights/codecs/engine_formats.py",
    "ltx2rt/weights/codecs/stored.py",
    "export/ltx2rt_export/choose.py",
    "export/ltx2rt_export/storage_format.py",
}
FORMAT_NAMES = {"fp8", "nvfp4"}
#: precisions with the name of a dtype, which stands wherever dtypes do
DTYPE_NAMES = {"int8"}


def names_in(source: str) -> Iterator[str]:
    """Precisions that string literals name; docstrings do not count."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    names = sorted(set(PRECISIONS) - DTYPE_NAMES, key=len, reverse=True)
    word = re.compile(rf"(?<![\w-])({'|'.join(names)})(?![\w-]|\.\w)")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from word.findall(node.value)


def test_precisions_are_named_in_their_table_alone() -> None:
    files = {str(p.relative_to(ROOT)): p for p in tracked("*.py")}
    wrong = {}
    for name, path in files.items():
        if name.startswith(("tests/", *TRITON)) or name in TABLES | CASES:
            continue
        found = set(names_in(path.read_text())) - (FORMAT_NAMES if name in FORMATS else set())
        if found:
            wrong[name] = sorted(found)
    assert wrong == {}, "take what is needed from `ltx2rt.weights.precision`"
    assert files.keys() >= TABLES | CASES | FORMATS


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('x = "bf16"', ["bf16"]),
        ('def f():\n    """In bf16."""\n    return f"{x} needs fp8-static"', ["fp8-static"]),
        ('x = {"int8": "fp8_scaled", "a": "mxfp8", "fp8.zero": 0}', []),
    ],
)
def test_names_are_found(source: str, found: list[str]) -> None:
    assert list(names_in(source)) == found


def test_documentation_has_a_line_for_every_precision() -> None:
    table = Path(ROOT / "docs/quantization.md").read_text()
    for row in PRECISIONS.values():
        line = next(line for line in table.splitlines() if line.startswith(f"| `{row.name}` |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        oldest = f"SM{row.min_sm}" if row.min_sm else "any"
        assert cells[3].startswith(oldest if row.on_gpu else "none")
        assert float(cells[4]) == pytest.approx(row.weight_bytes, abs=0.005)
        assert cells[5].startswith("yes") == row.on_cpu
