"""Rules of the house: small files, no prints in the library, no machine paths."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARD_STOP = 500


#: folders of what is made here, in a copy of the project that is no repository
MADE = {".venv", "__pycache__", "build", "dist"}


def tracked(*patterns: str) -> list[Path]:
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    files = [ROOT / line for line in out.stdout.splitlines()]
    if files := [f for f in files if f.is_file()]:
        return files
    inside = (f.relative_to(ROOT) for f in ROOT.rglob("*") if f.is_file())  # no repository
    return [
        ROOT / f
        for f in inside
        if not MADE & {*f.parts}
        and not f.parts[0].endswith(".egg-info")
        and (not patterns or any(fnmatch(f.as_posix(), p) for p in patterns))
    ]


def test_files_stay_small() -> None:
    sizes = {p: len(p.read_text().splitlines()) for p in tracked("*.py")}
    too_long = {str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > HARD_STOP}
    assert len(sizes) > 20
    assert not too_long, f"split these files (hard stop {HARD_STOP} lines)"


@pytest.mark.parametrize("word", ["NotImplementedError", "TO" + "DO", "FIX" + "ME", "breakpoint("])
def test_nothing_is_left_open(word: str) -> None:
    found = [str(p.relative_to(ROOT)) for p in tracked("*.py") if word in p.read_text()]
    assert [f for f in found if not f.endswith("test_house_rules.py")] == []


def test_array_aliases_have_one_home() -> None:
    alias = re.compile(
        r"^(\w+) = NDArray\[(Any|np\.float32|np\.float64|np\.uint8)\]$", re.MULTILINE
    )
    found = {p: alias.findall(p.read_text()) for p in tracked("ltx2rt/*.py", "export/*.py")}
    assert {p.name: len(names) for p, names in found.items() if names} == {"engine.py": 4}


def test_committed_goldens_stay_small() -> None:
    total = sum(p.stat().st_size for p in (ROOT / "tests/golden").rglob("*") if p.is_file())
    assert total <= 12e6
