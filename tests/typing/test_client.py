"""Type checkers know every public name: mypy, strict, over a program that uses them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ltx2rt

api = pytest.importorskip("mypy.api", reason="mypy is not installed (the lint group)")

#: arrays of any shape or dtype; plain data as JSON holds it
OPEN = re.compile(r"tuple\[Any, \.\.\.\]|numpy\.dtype\[Any\]|\[str, Any\]")

ROOT = Path(__file__).resolve().parents[2]


def check(*files: Path) -> tuple[str, int]:
    """What mypy says of files, with the settings of the project."""
    out, err, code = api.run(["--config-file", str(ROOT / "pyproject.toml"), *map(str, files)])
    assert not err
    return out, code


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_program_is_checked_without_complaint() -> None:
    examples = sorted((ROOT / "examples").glob("*.py"))
    out, code = check(Path(__file__).with_name("client.py"), *examples)
    assert code == 0, out


def test_every_public_name_has_a_type(tmp_path: Path) -> None:
    names = [name for name in ltx2rt.__all__ if name != "__version__"]
    file = tmp_path / "every_name.py"
    file.write_text("import ltx2rt\n" + "".join(f"reveal_type(ltx2rt.{n})\n" for n in names))
    out, code = check(file)
    assert code == 0, out
    known = dict(zip(names, re.findall(r'note: Revealed type is "(.*)"', out), strict=True))
    loose = {name for name, kind in known.items() if re.search(r"\bAny\b", OPEN.sub("", kind))}
    assert not loose
