"""Everything that stands for a bundle has the face that pipelines use."""

from __future__ import annotations

import inspect

import pytest

from benchmarks.quality import EmulatedSource
from ltx2rt.bundle.bundle import Bundle, ModelSource
from tests.parity.pipeline_source import ComponentSource


@pytest.mark.parametrize("source", [Bundle, EmulatedSource, ComponentSource])
def test_sources_have_the_methods_of_the_protocol(source: type) -> None:
    names = [n for n, v in vars(ModelSource).items() if inspect.isfunction(v) and n[0] != "_"]
    assert "layers" in names
    for name in names:
        wanted = inspect.signature(getattr(ModelSource, name)).parameters
        found = inspect.signature(getattr(source, name)).parameters
        assert [(p.name, p.kind, p.default) for p in wanted.values()] == [
            (p.name, p.kind, p.default) for p in found.values()
        ], name
