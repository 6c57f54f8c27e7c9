"""One table of public names, and what it promises."""

from __future__ import annotations

import ast
import dataclasses
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import ltx2rt
from ltx2rt import errors
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from tests import option_types
from tests.api_page import PAGE, page

TABLE = Path(ltx2rt.__file__).with_suffix(".pyi")


def test_the_table_is_what_type_checkers_read() -> None:
    """`import ltx2rt` must stay instant, so it reads the file by lines: no line may be broken."""
    body = ast.parse(TABLE.read_text()).body
    read = {a.name: n.module for n in body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert read == ltx2rt._HOMES
    explicit = [a for n in body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert [a.name for a in explicit] == [a.asname for a in explicit]  # else it is not exported
    assert dir(ltx2rt) == sorted([*read, "__version__"])


def test_every_name_is_its_homes() -> None:
    for name, home in ltx2rt._HOMES.items():
        assert getattr(ltx2rt, name) is getattr(import_module(home), name)
        assert getattr(ltx2rt, name).__module__ == home
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = ltx2rt.Nothing


def test_what_users_need_is_public() -> None:
    pipelines = {catalog_class(name) for name in PIPELINES}
    inputs = {pipeline.Inputs for pipeline in pipelines} - {None}
    raised = {
        v
        for v in vars(errors).values()
        if isinstance(v, type) and issubclass(v, Exception) and v.__module__ == "ltx2rt.errors"
    }
    public = {getattr(ltx2rt, name) for name in ltx2rt._HOMES}
    assert pipelines | inputs | raised <= public
    assert all(dataclasses.is_dataclass(i) and i.__name__.endswith("Inputs") for i in inputs)


def test_errors_defined_elsewhere_are_public_too() -> None:
    modules = [import_module(m.name) for m in pkgutil.walk_packages(ltx2rt.__path__, "ltx2rt.")]
    values = [value for module in modules for value in vars(module).values()]
    found = {v for v in values if isinstance(v, type) and issubclass(v, errors.Ltx2rtError)}
    assert {v.__name__ for v in found} <= set(ltx2rt._HOMES)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.api_page"


def test_what_pipelines_take_by_keyword_is_up_to_date() -> None:
    pytest.importorskip("ruff", reason="ruff is not installed (the lint group)")
    assert option_types.FILE.read_text(encoding="utf-8") == option_types.text(), "run `make docs`"
