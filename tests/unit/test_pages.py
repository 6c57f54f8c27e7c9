"""Pages that are lists: flags, extras, errors, what the site shows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import ltx2rt
from tests import cli_page
from tests.unit.test_house_rules import tracked

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ERRORS = re.compile(r"<!-- errors.*?-->(.*)<!-- end of errors -->", re.DOTALL)


def test_the_page_of_flags_is_up_to_date() -> None:
    assert cli_page.PAGE.read_text(encoding="utf-8") == cli_page.page(), "run `make docs`"


def test_every_extra_is_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (DOCS / "install.md").read_text()
    explained = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    halves = {"rtx", "cuda"}
    assert explained == set(extras["optional-dependencies"]) - halves
    assert all(f"`{half}`" in page for half in halves)


def test_no_page_installs_by_a_name_that_no_index_has() -> None:
    """Until a version is published: a checkout, its address, or a wheel."""
    named = re.compile(r"pip install '?ltx2rt(?:\[[^]]*\])?'?(?! ?@)(?=[\s`]|$)")
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    found = {p.name: m[0] for p in pages for m in named.finditer(p.read_text(encoding="utf-8"))}
    assert not found


def test_commands_can_be_pasted_with_what_explains_them() -> None:
    """An explanation behind a command is a comment of the shell."""
    bare = re.compile(
        r"^(?:ltx2rt|pip|curl|make|python) (?=\S)[^#\n]*?\S {3,}(?!--)[^ #].*$", re.MULTILINE
    )
    blocks = re.compile(r"^```(?:sh)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    pages = [ROOT / "README.md", *DOCS.glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    commands = [b for p in pages for b in blocks.findall(p.read_text(encoding="utf-8"))]
    assert not [m[0] for block in commands for m in bare.finditer(block)]


@cache
def texts() -> str:
    """Every text in the source; what is filled in is left out, and texts do not touch."""
    found = []
    for path in tracked("ltx2rt/*.py", "export/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\0".join(found).replace("`", "")


def quoted() -> list[str]:
    page = ERRORS.search((DOCS / "troubleshooting.md").read_text())
    assert page is not None
    return re.findall(r"^\| `([^`]+)` \|", page[1], re.MULTILINE)


def test_errors_that_are_explained_are_raised() -> None:
    messages = quoted()
    assert len(messages) > 20
    wrong = {}
    for message in messages:
        parts = [part for part in re.split(r"\.\.\.", message) if part.strip(" :;,.'")]
        assert parts, message
        if missing := [p for p in parts if p.strip(" '") not in texts()]:
            wrong[message] = missing
    assert not wrong


class Loader(yaml.SafeLoader):
    """Of a site's settings, which name functions of Python by tags."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def pages(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav
    return [page for item in items for page in pages(item)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("made", [("index.md", "reference.md")])
def test_the_site_shows_every_page(made: tuple[str, ...]) -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    shown = pages(settings["nav"])
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(shown) == len(set(shown))
    assert set(shown) == there | set(made)
    assert "://" not in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.site
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """It checks every link and anchor, and finds every name of the reference."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (the docs group)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference/index.html").read_text(encoding="utf-8")
    missing = [n for n in ltx2rt.__all__ if n != "__version__" and f"ltx2rt.{n}" not in reference]
    assert not missing
    pages = (page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html"))
    loaded = re.compile(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(?:https?:)?//""")
    assert not any(loaded.search(page) for page in pages)  # nothing comes from elsewhere
