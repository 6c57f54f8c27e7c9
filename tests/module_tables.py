"""The modules part of docs/architecture.md: one sentence a module, the first of its docstring.

`python -m tests.module_tables` (or `make docs`) writes it again; a test compares.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
PACKAGES = ("ltx2rt", "export/ltx2rt_export", "kernels/ltx2rt_kernels")
BLOCK = re.compile(r"(<!-- modules -->\n).*(<!-- end of modules -->\n)", re.DOTALL)


def modules(folder: Path) -> list[Path]:
    """The modules that lie in a folder; `__init__.py` and `__main__.py` are not counted."""
    return sorted(p for p in folder.glob("*.py") if not p.stem.startswith("__"))


def folders() -> list[Path]:
    """Every folder that has modules. Operators are left out: each has the same four files."""
    operators = {p.parent for p in ROOT.glob("kernels/ltx2rt_kernels/*/spec.py")}
    found = [f for p in PACKAGES for f in (ROOT / p, *sorted((ROOT / p).rglob("*")))]
    return [f for f in found if f.is_dir() and f not in operators and modules(f)]


@cache
def sentence(module: Path) -> str:
    """The first sentence of a module's docstring, on one line; "" if it has none."""
    paragraph = (ast.get_docstring(ast.parse(module.read_text())) or "").split("\n\n")[0]
    first = re.split(r"(?<=\w\.)\s+(?=[A-Z])", " ".join(paragraph.split()))[0]
    return first.rstrip(".").replace("|", "\\|")


def section(folder: Path) -> str:
    """Heading, sentence and table of a folder, in Markdown."""
    rows = [f"| `{m.name}` | {sentence(m)} |" for m in modules(folder)]
    head = [
        f"### `{folder.relative_to(ROOT).as_posix()}/`",
        "",
        f"{sentence(folder / '__init__.py')}.",
    ]
    return "\n".join([*head, "", "| module | does |", "|---|---|", *rows]) + "\n"


def rewritten(text: str) -> str:
    """The page with its modules part made anew."""
    made = "\n".join(["", *(section(f) for f in folders()), ""])
    return BLOCK.sub(lambda m: m[1] + made + m[2], text)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
    sys.exit(0)
